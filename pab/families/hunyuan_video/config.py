"""Sizes and constants of HunyuanVideo, text or image to video, and SkyReels V1, and how they differ. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pab.families.hunyuan_video.weights import (
    HUNYUAN_VIDEO_WEIGHTS,
    I2V_33CH_WEIGHTS,
    I2V_WEIGHTS,
    SKYREELS_WEIGHTS,
    HunyuanWeights,
)
from pab.family import FIGURES_FILE, ClipRequest, CostFigures, MemoryFigures, read_figures
from pab.library.even_levels import moved_timesteps

MAX_FRAMES, MAX_SHORT_SIDE, MAX_LONG_SIDE = 129, 720, 1280
MAX_TEXT_TOKENS = 256
LATENT_CHANNELS = 16
SHIFT = 7.0
"""How far the noise levels are moved towards noise, as published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageWay:
    """How a transformer takes the image that its clips begin with. `name`: in its configuration.

    `channels`: further channels of its input. `lead_frames`: frames that are rendered before the clip's first and left out.
    `every`: of the image's 576 tokens in the text, one of so many is kept.
    """

    name: str
    channels: int
    lead_frames: int
    every: int


TOKEN_REPLACE = ImageWay(name="token_replace", channels=0, lead_frames=0, every=4)
"""The first frame's tokens are the image's, and have timestep 0."""
LATENT_CONCAT = ImageWay(name="latent_concat", channels=LATENT_CHANNELS + 1, lead_frames=4, every=2)
"""The image's latents stand beside the noise, with a mask of the frames that are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanModel:
    """How the published models differ.

    `told_guidance`: the guidance scale that the transformer takes as an input for every clip; the clip's own scale then
    guides by two branches. None: the transformer is distilled, and takes the clip's own scale in one pass. `image`: how it
    takes the image that every clip begins with, None for text to video.
    """

    name: str
    summary: str
    weights: HunyuanWeights
    num_layers: int
    num_single_layers: int
    told_guidance: float | None
    num_frames: int
    height: int
    width: int
    cost: CostFigures
    guidance_scale: float = 6.0
    image: ImageWay | None = None

    @property
    def lead_frames(self) -> int:
        """Frames that are rendered before the clip's first and left out."""
        return 0 if self.image is None else self.image.lead_frames

    @property
    def max_frames(self) -> int:
        """The longest clip."""
        return MAX_FRAMES - self.lead_frames

    def num_tokens(self, num_frames: int, height: int, width: int) -> int:
        """Counts latent tokens after patching: 16x16 pixels each."""
        return hunyuan_video_latent_frames(num_frames + self.lead_frames) * (height // 16) * (width // 16)


def hunyuan_video_latent_frames(num_frames: int) -> int:
    """Counts latent frames: the first frame is one, and so are every four that follow."""
    return (num_frames - 1) // 4 + 1


def hunyuan_video_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns the timesteps: float32 values, embedded in float32 whatever the model's precision."""
    return moved_timesteps(request.num_steps, SHIFT if request.flow_shift is None else request.flow_shift)


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak. One pass a step, and two.
FIGURES = read_figures(Path(__file__).with_name(FIGURES_FILE))


_COST_ONE_PASS = CostFigures(
    measured=None,
    load_s=240.0,
    linear_s=3.4e-5,
    quadratic_s=1.86e-9,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.10, "mlp": 0.22},
    decode_s_per_pixel=7e-7,
    memory=MemoryFigures(measured=None, parameters=13.1e9, width=3072, rows_per_pass=1, float8_parameters=6.8e9),
)


_COST_TWO_PASSES = CostFigures(
    measured=None,
    load_s=240.0,
    linear_s=6.9e-5,
    quadratic_s=3.71e-9,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.25, "mlp": 0.19},
    decode_s_per_pixel=7e-7,
    memory=MemoryFigures(measured=None, parameters=13.1e9, width=3072, rows_per_pass=1, float8_parameters=6.8e9),
)


HUNYUAN_VIDEO_MODEL = HunyuanModel(
    name="hunyuan_video",
    summary="HunyuanVideo 13B, text to video, guidance distilled, 4n+1 frames up to 129 of 720x1280",
    weights=HUNYUAN_VIDEO_WEIGHTS,
    num_layers=20,
    num_single_layers=40,
    told_guidance=None,
    num_frames=129,
    height=720,
    width=1280,
    cost=_COST_ONE_PASS,
)


SKYREELS_V1_MODEL = HunyuanModel(
    name="skyreels_v1",
    summary="SkyReels V1, a HunyuanVideo with guidance in two branches, text to video, best at 97 frames of 544x960",
    weights=SKYREELS_WEIGHTS,
    num_layers=20,
    num_single_layers=40,
    told_guidance=1.0,
    num_frames=97,
    height=544,
    width=960,
    cost=_COST_TWO_PASSES,
)


HUNYUAN_VIDEO_I2V_MODEL = replace(
    HUNYUAN_VIDEO_MODEL,
    name="hunyuan_video_i2v",
    summary="HunyuanVideo 13B I2V, image and text to video, guidance distilled, 4n+1 frames up to 129 of 720x1280",
    weights=I2V_WEIGHTS,
    image=TOKEN_REPLACE,
)


HUNYUAN_VIDEO_I2V_33CH_MODEL = replace(
    HUNYUAN_VIDEO_MODEL,
    name="hunyuan_video_i2v_33ch",
    summary="HunyuanVideo 13B I2V of the first release, image and text to video, 4n+1 frames up to 125 of 720x1280",
    weights=I2V_33CH_WEIGHTS,
    told_guidance=1.0,
    guidance_scale=1.0,
    num_frames=125,
    cost=_COST_TWO_PASSES,
    image=LATENT_CONCAT,
)
