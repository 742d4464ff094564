"""Sizes and constants of Open-Sora-Plan 1.1.0 and 1.2.0, and how their checkpoints differ. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pab.family import FIGURES_FILE, ClipRequest, CostFigures, MemoryFigures, read_figures
from pab.sampling.samplers import euler_ancestral_timesteps, pndm_timesteps

DEPTH_V110, DEPTH_V120 = 28, 32


MAX_TEXT_TOKENS_V110, MAX_TEXT_TOKENS_V120 = 300, 512


STEPS_V110, STEPS_V120 = 150, 100


FIGURES = read_figures(Path(__file__).with_name(FIGURES_FILE))["open_sora_plan_v110"]


# Not measured: counted operations at half of an H200's rate.
_COST_V120 = CostFigures(
    measured=None,
    load_s=180.0,
    linear_s=2.2e-5,
    quadratic_s=3.12e-10,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.58, "cross": 0.11, "mlp": 0.28},
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


def plan_latent_frames(num_frames: int) -> int:
    """Counts latent frames: the first frame, and one for every four that follow."""
    return (num_frames - 1) // 4 + 1


def plan_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching: 16x16 pixels each, of the first frame and of every four that follow."""
    return plan_latent_frames(num_frames) * (height // 16) * (width // 16)


def v110_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns PNDM's timesteps, nine more than steps: whole numbers, which no precision rounds."""
    return pndm_timesteps(request.num_steps)


def v120_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns Euler's timesteps, which the model embeds in float32 whatever its precision."""
    return euler_ancestral_timesteps(request.num_steps)
