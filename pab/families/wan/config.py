"""Sizes and constants of the published Wan models, and how they differ. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pab.conditioning.references import ReferenceRules, first_image_rules
from pab.families.wan.levels import FEW_STEPS, shifted_timesteps
from pab.family import FIGURES_FILE, ClipRequest, CostFigures, MemoryFigures, Sampling, read_figures

MAX_TEXT_TOKENS = 512


SAMPLINGS = {
    "lightning4": Sampling(
        summary="4 steps of Euler's method at fixed levels, shift 5: distilled Wan 2.1 of LightX2V, Wan 2.2 Lightning",
        num_steps=4,
        guidance_scale=1.0,
    ),
    "dmd3": Sampling(
        summary="3 steps, each adding fresh noise to what it predicts: FastWan 2.1 and 2.2 5B",
        num_steps=3,
        guidance_scale=1.0,
    ),
}
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
)
"""As Wan's own program has it."""
FRAME_STRIDE = 4
"""Frames of a latent frame; the first one stands for one frame."""
LARGE_PIXELS = 480 * 832
"""Frames of more pixels take the larger shift of the noise levels, where a model has two."""


def latent_frames(num_frames: int) -> int:
    """Counts latent frames."""
    return (num_frames - 1) // FRAME_STRIDE + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WanModel:
    """How the published models differ. `shifts`: of the noise levels, up to 480p and beyond.

    `boundary`: the timestep below which a second transformer takes over, None for a model that has one. `pixel_stride`:
    pixels of a latent's side. `timed_tokens`: whether the transformer takes a timestep for every token; such a model may be
    given the first frame. `from_image`: whether every clip begins with an image, which the transformer is given as further
    channels; `reads_image`: whether an image encoder looks at it too.
    """

    name: str
    summary: str
    hub_id: str
    num_layers: int
    shifts: tuple[float, float]
    height: int
    width: int
    num_steps: int
    guidance_scale: float
    cost: CostFigures
    boundary: float | None = None
    num_frames: int = 81
    fps: int = 16
    latent_channels: int = 16
    pixel_stride: int = 8
    timed_tokens: bool = False
    few_steps: tuple[str, ...] = ("lightning4", "dmd3")
    """The presets of `SAMPLINGS` for which distilled weights of this model may be published."""
    from_image: bool = False
    reads_image: bool = False

    @property
    def in_channels(self) -> int:
        """Channels that the transformer takes: of the latents, and behind them a mask and the latents of the image."""
        return self.latent_channels + (FRAME_STRIDE + self.latent_channels if self.from_image else 0)

    @property
    def references(self) -> ReferenceRules | None:
        """How clips take an image; None for a model of text alone."""
        if not (self.from_image or self.timed_tokens):
            return None
        return first_image_rules(latent_frames, required=self.from_image)

    @property
    def token_side(self) -> int:
        """Pixels of a token's side."""
        return 2 * self.pixel_stride

    def num_tokens(self, num_frames: int, height: int, width: int) -> int:
        """Counts latent tokens after patching: of the first frame and of every four that follow."""
        return latent_frames(num_frames) * (height // self.token_side) * (width // self.token_side)

    def shift(self, height: int, width: int) -> float:
        """Returns the shift of a clip's noise levels."""
        return self.shifts[height * width > LARGE_PIXELS]

    def timesteps(self, request: ClipRequest, _precision: str) -> tuple[float, ...]:
        """Returns UniPC's timesteps, whole numbers, or those of a few-step preset; embedded in float32 in any precision."""
        if request.sampling is not None:
            return FEW_STEPS[request.sampling].timesteps
        shift = self.shift(request.height, request.width) if request.flow_shift is None else request.flow_shift
        return shifted_timesteps(request.num_steps, shift)

    def cache_reset_steps(self, request: ClipRequest, precision: str) -> tuple[int, ...]:
        """Returns the step at which the second transformer takes over, if there is one."""
        below = [timestep < (self.boundary or 0) for timestep in self.timesteps(request, precision)]
        return (below.index(True),) if True in below[1:] and not below[0] else ()


FIGURES = read_figures(Path(__file__).with_name(FIGURES_FILE))


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak, both guidance branches.
_COST_5B = CostFigures(
    measured=None,
    load_s=120.0,
    linear_s=5e-5,
    quadratic_s=1.24e-9,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.16, "cross": 0.17, "mlp": 0.59},
    decode_s_per_pixel=3e-7,
    memory=MemoryFigures(measured=None, parameters=5.0e9, width=3072, rows_per_pass=1, float8_parameters=4.34e9),
)


WAN_MODEL = WanModel(
    name="wan",
    summary="Wan 2.1 1.3B, text to video, 480x832, 4n+1 frames",
    hub_id="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    num_layers=30,
    shifts=(3.0, 5.0),
    height=480,
    width=832,
    num_steps=50,
    guidance_scale=5.0,
    cost=FIGURES["wan"][0],
)


WAN_14B_MODEL = WanModel(
    name="wan_14b",
    summary="Wan 2.1 14B, text to video, 720x1280 or 480x832, 4n+1 frames",
    hub_id="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    num_layers=40,
    shifts=(3.0, 5.0),
    height=720,
    width=1280,
    num_steps=50,
    guidance_scale=5.0,
    cost=FIGURES["wan_14b"][0],
)


WAN22_A14B_MODEL = WanModel(
    name="wan22_a14b",
    summary="Wan 2.2 A14B, text to video with two experts, 720x1280 or 480x832, 4n+1 frames",
    hub_id="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    num_layers=40,
    shifts=(12.0, 12.0),
    height=720,
    width=1280,
    num_steps=40,
    guidance_scale=4.0,
    # Its experts are transformers of Wan 2.1's size; itself it was not measured.
    cost=replace(
        FIGURES["wan_14b"][0],
        measured=None,
        load_s=360.0,
        memory=MemoryFigures(measured=None, parameters=28.8e9, width=5120, rows_per_pass=1, float8_parameters=23.9e9),
    ),
    boundary=875.0,
    few_steps=("lightning4",),
)


WAN22_5B_MODEL = WanModel(
    name="wan22_5b",
    summary="Wan 2.2 TI2V 5B, text or image to video, 704x1280 at 24 frames per second, 4n+1 frames",
    hub_id="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    num_layers=30,
    shifts=(5.0, 5.0),
    height=704,
    width=1280,
    num_steps=50,
    guidance_scale=5.0,
    cost=_COST_5B,
    num_frames=121,
    fps=24,
    latent_channels=48,
    pixel_stride=16,
    timed_tokens=True,
)


# A transformer like the one of text to video, with projections of an image's tokens; itself it was not measured. The encoder
# of images stays on the host.
_COST_I2V_14B = replace(
    FIGURES["wan_14b"][0],
    measured=None,
    memory=MemoryFigures(measured=None, parameters=16.5e9, width=5120, rows_per_pass=1, float8_parameters=11.95e9),
)


WAN_14B_I2V_480P_MODEL = replace(
    WAN_14B_MODEL,
    name="wan_14b_i2v_480p",
    summary="Wan 2.1 I2V 14B 480p, image and text to video, 480x832, 4n+1 frames",
    hub_id="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    height=480,
    width=832,
    num_steps=40,
    cost=_COST_I2V_14B,
    from_image=True,
    few_steps=("lightning4",),
    reads_image=True,
)


WAN_14B_I2V_720P_MODEL = replace(
    WAN_14B_I2V_480P_MODEL,
    name="wan_14b_i2v_720p",
    summary="Wan 2.1 I2V 14B 720p, image and text to video, 720x1280, 4n+1 frames",
    hub_id="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
    height=720,
    width=1280,
)


WAN22_A14B_I2V_MODEL = replace(
    WAN22_A14B_MODEL,
    name="wan22_a14b_i2v",
    summary="Wan 2.2 I2V A14B, image and text to video with two experts, 720x1280 or 480x832, 4n+1 frames",
    hub_id="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    shifts=(5.0, 5.0),
    guidance_scale=3.5,
    boundary=900.0,
    from_image=True,
    few_steps=("lightning4",),
)
