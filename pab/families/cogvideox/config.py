"""Sizes and constants of the published CogVideoX models, and how they differ. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pab.families.cogvideox.levels import trailing_timesteps
from pab.family import FIGURES_FILE, ClipRequest, CostFigures, MemoryFigures, Sampling, read_figures

MAX_TEXT_TOKENS = 226
DPM, DYNAMIC, DPM_DYNAMIC = "dpm", "dynamic", "dpm-dynamic"
SAMPLINGS = {
    DPM: Sampling(summary="the DPM solver with noise after every step"),
    DYNAMIC: Sampling(summary="a guidance scale that changes over the steps"),
    DPM_DYNAMIC: Sampling(summary="both, as published for 5B"),
}
LATENT_CHANNELS = 16


NUM_FRAMES, HEIGHT, WIDTH = 49, 480, 720


@dataclass(frozen=True, slots=True, kw_only=True)
class CogVideoXModel:
    """How the published models differ. `rotary`: positions turn queries and keys, else they are added once.

    `snr_shift`: how far the noise levels are shifted towards noise. `from_image`: every clip begins with an image, whose
    latents are further channels; positions were learned for clips of `num_frames`, `height`, `width`, and no others are
    rendered.
    """

    name: str
    summary: str
    hub_id: str
    num_layers: int
    rotary: bool
    snr_shift: float
    cost: CostFigures
    from_image: bool = False
    num_frames: int = NUM_FRAMES
    height: int = HEIGHT
    width: int = WIDTH

    @property
    def in_channels(self) -> int:
        """Channels that the transformer takes."""
        return LATENT_CHANNELS * (2 if self.from_image else 1)


def cogvideox_latent_frames(num_frames: int) -> int:
    """Counts latent frames: the first frame is one, and so are every four that follow."""
    return (num_frames - 1) // 4 + 1


def cogvideox_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns DDIM's timesteps: whole numbers, embedded in float32 whatever the model's precision."""
    return trailing_timesteps(request.num_steps)


def cogvideox_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching: 16x16 pixels each, of the first frame and of every four that follow."""
    return cogvideox_latent_frames(num_frames) * (height // 16) * (width // 16)


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak, both guidance branches.
FIGURES = read_figures(Path(__file__).with_name(FIGURES_FILE))


_COST_2B = CostFigures(
    measured=None,
    load_s=60.0,
    linear_s=1.7e-5,
    quadratic_s=1.16e-9,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.25, "mlp": 0.66},
    decode_s_per_pixel=5e-7,
    memory=MemoryFigures(measured=None, parameters=1.9e9, width=1920, float8_parameters=1.33e9),
)


_COST_5B = CostFigures(
    measured=None,
    load_s=90.0,
    linear_s=5e-5,
    quadratic_s=2.61e-9,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.23, "mlp": 0.67},
    decode_s_per_pixel=5e-7,
    memory=MemoryFigures(measured=None, parameters=5.8e9, width=3072, float8_parameters=4.76e9),
)


COGVIDEOX_2B_MODEL = CogVideoXModel(
    name="cogvideox_2b",
    summary="CogVideoX 2B, text to video, up to 49 frames of 480x720",
    hub_id="THUDM/CogVideoX-2b",
    num_layers=30,
    rotary=False,
    snr_shift=3.0,
    cost=_COST_2B,
)


COGVIDEOX_5B_MODEL = CogVideoXModel(
    name="cogvideox_5b",
    summary="CogVideoX 5B, text to video, up to 49 frames of 480x720",
    hub_id="THUDM/CogVideoX-5b",
    num_layers=42,
    rotary=True,
    snr_shift=1.0,
    cost=_COST_5B,
)


COGVIDEOX_5B_I2V_MODEL = replace(
    COGVIDEOX_5B_MODEL,
    name="cogvideox_5b_i2v",
    summary="CogVideoX 5B I2V, image and text to video, 49 frames of 480x720",
    hub_id="THUDM/CogVideoX-5b-I2V",
    from_image=True,
)
