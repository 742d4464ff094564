"""Sizes and constants of LTX-Video. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from pab.families.ltx.levels import DISTILLED, distilled_timesteps, moved_timesteps
from pab.family import ClipRequest, CostFigures, MemoryFigures, Sampling

MAX_TEXT_TOKENS = 128
SAMPLINGS = {
    "distilled8": Sampling(
        summary="8 steps at the fixed levels of the distilled models from 0.9.7 on",
        num_steps=len(DISTILLED),
        guidance_scale=1.0,
    )
}
NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"
"""As LTX-Video's own program has it."""
FRAME_STRIDE, PIXEL_STRIDE = 8, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LtxModel:
    """A published model: its name, and how deep its transformer is."""

    name: str
    num_layers: int


def ltx_latent_frames(num_frames: int) -> int:
    """Counts latent frames: the first frame is one, and so are every eight that follow."""
    return (num_frames - 1) // FRAME_STRIDE + 1


def ltx_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens: 32x32 pixels each, of the first frame and of every eight that follow."""
    return ltx_latent_frames(num_frames) * (height // PIXEL_STRIDE) * (width // PIXEL_STRIDE)


def ltx_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns the timesteps: float32 values that depend on the clip's size, embedded in float32 in any precision."""
    if request.sampling is not None:
        return distilled_timesteps()
    return moved_timesteps(request.num_steps, ltx_tokens(request.num_frames, request.height, request.width))


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak, both guidance branches.
_COST = CostFigures(
    measured=None,
    load_s=60.0,
    linear_s=1.7e-5,
    quadratic_s=1.18e-9,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.27, "cross": 0.14, "mlp": 0.54},
    decode_s_per_pixel=1e-7,
    memory=MemoryFigures(measured=None, parameters=2.3e9, width=2048),
)


NUM_FRAMES, HEIGHT, WIDTH = 161, 512, 704
"""Of the default clip."""
LTX_MODEL = LtxModel(name="ltx", num_layers=28)
