"""Sizes and constants of Open-Sora-Plan 1.1.0 and 1.2.0, and how their checkpoints differ. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from pab.family import ClipRequest, CostFigures, MemoryFigures
from pab.sampling.samplers import euler_ancestral_timesteps, pndm_timesteps

DEPTH_V110, DEPTH_V120 = 28, 32


MAX_TEXT_TOKENS_V110, MAX_TEXT_TOKENS_V120 = 300, 512


STEPS_V110, STEPS_V120 = 150, 100


# One H200, bfloat16, fused kernels, both guidance rows: a full step is 152 ms at 17,408 tokens (65 frames); its shares are
# Latte's, whose blocks are the same. Loading and decoding are not measured.
_COST_V110 = CostFigures(
    measured="one H200, bfloat16, fused kernels (shares of sites are Latte's; loading and decoding estimated)",
    load_s=90.0,
    linear_s=8.2e-6,
    quadratic_s=6.0e-10,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.24, "temporal": 0.15, "cross": 0.09, "mlp": 0.48},
    decode_s_per_pixel=4e-7,
    memory=MemoryFigures(measured=None, parameters=1.3e9, width=1152),
)


# Not measured: counted operations of 93 frames at 480x640 at half of an H200's rate. Attention grows with all tokens, the
# figure with a frame's, so it holds for about that length.
_COST_V120 = CostFigures(
    measured=None,
    load_s=180.0,
    linear_s=2.2e-5,
    quadratic_s=2.9e-8,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.70, "cross": 0.08, "mlp": 0.20},
    decode_s_per_pixel=4e-7,
    memory=MemoryFigures(measured=None, parameters=3.0e9, width=2304),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One published transformer: the hub's subfolder, and the clips it was trained on."""

    folder: str
    num_frames: int
    height: int
    width: int


def plan_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching: 16x16 pixels each, of the first frame and of every four that follow."""
    return ((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def v110_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns PNDM's timesteps, nine more than steps: whole numbers, which no precision rounds."""
    return pndm_timesteps(request.num_steps)


def v120_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns Euler's timesteps, which the model embeds in float32 whatever its precision."""
    return euler_ancestral_timesteps(request.num_steps)
