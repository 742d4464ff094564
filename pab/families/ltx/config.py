"""Sizes and constants of LTX-Video. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pab.families.ltx.levels import DISTILLED_TIMESTEPS, PRESET_LEVELS, preset_timesteps, quadratic_timesteps
from pab.families.ltx.weights import LTX_2B_WEIGHTS, LTX_13B_DISTILLED_WEIGHTS, LTX_13B_WEIGHTS, LTX_WEIGHTS
from pab.family import FIGURES_FILE, ClipRequest, CostFigures, MemoryFigures, Sampling, read_figures
from pab.library.stretched_levels import moved_timesteps
from pab.weights.checkpoint import Published

SAMPLINGS = {
    "distilled8": Sampling(
        summary="8 steps at the fixed levels of the distilled models from 0.9.7 on",
        num_steps=len(PRESET_LEVELS),
        guidance_scale=1.0,
    )
}
NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"
"""As LTX-Video's own program has it."""
FRAME_STRIDE, PIXEL_STRIDE = 8, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LtxModel:
    """How the published models differ.

    `takes_conditions`: whether the model is of the line from 0.9.5 on, which the library renders with
    `LTXConditionPipeline`: other noise levels, positions and text. `is_distilled`: it then has eight fixed levels and one
    branch.
    """

    name: str
    num_layers: int
    summary: str
    weights: Published
    window: tuple[int, int]
    cost: CostFigures
    takes_conditions: bool = False
    is_distilled: bool = False
    guidance_scale: float = 3.0

    @property
    def max_text_tokens(self) -> int:
        """How many tokens of a prompt the text encoder reads."""
        return 256 if self.takes_conditions else 128

    def timesteps(self, num_steps: int, size: tuple[int, int, int]) -> tuple[float, ...]:
        """Returns the timesteps of a clip of so many frames, rows and columns: float32 values."""
        if self.is_distilled:
            return DISTILLED_TIMESTEPS
        return (
            quadratic_timesteps(num_steps) if self.takes_conditions else moved_timesteps(num_steps, ltx_tokens(*size))
        )

    def clip_timesteps(self, clip: ClipRequest, _precision: str) -> tuple[float, ...]:
        """Returns the timesteps of a clip, which may name a preset of few steps; embedded in float32 in any precision."""
        if clip.sampling is not None:
            return preset_timesteps()
        return self.timesteps(clip.num_steps, (clip.num_frames, clip.height, clip.width))


def ltx_latent_frames(num_frames: int) -> int:
    """Counts latent frames: the first frame's, and one of every eight that follow."""
    return (num_frames - 1) // FRAME_STRIDE + 1


def ltx_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens: 32x32 pixels each, of the first frame and of every eight that follow."""
    return ltx_latent_frames(num_frames) * (height // PIXEL_STRIDE) * (width // PIXEL_STRIDE)


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak, both guidance branches.
FIGURES = read_figures(Path(__file__).with_name(FIGURES_FILE))


_COST = CostFigures(
    measured=None,
    load_s=60.0,
    linear_s=1.7e-5,
    quadratic_s=1.18e-9,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.27, "cross": 0.14, "mlp": 0.54},
    decode_s_per_pixel=1e-7,
    memory=MemoryFigures(measured=None, parameters=2.3e9, width=2048, float8_parameters=1.64e9),
)
_COST_13B = replace(
    _COST,
    load_s=180.0,
    linear_s=1.14e-4,
    quadratic_s=3.98e-9,
    kind_shares={"spatial": 0.28, "cross": 0.14, "mlp": 0.57},
    memory=MemoryFigures(measured=None, parameters=13.4e9, width=4096, float8_parameters=11.3e9),
)
_COST_13B_ONE_PASS = replace(
    _COST_13B,
    linear_s=5.7e-5,
    quadratic_s=1.99e-9,
    memory=MemoryFigures(measured=None, parameters=13.4e9, width=4096, rows_per_pass=1, float8_parameters=11.3e9),
)

NUM_FRAMES, HEIGHT, WIDTH = 161, 512, 704
"""Of the default clip."""
LTX_MODEL = LtxModel(
    name="ltx",
    num_layers=28,
    summary="LTX-Video 2B (0.9.0, 0.9.1), text or image to video, 8n+1 frames up to 704x1280",
    weights=LTX_WEIGHTS,
    window=(750, 990),
    cost=_COST,
)
LTX_2B_MODEL = LtxModel(
    name="ltx_2b",
    num_layers=28,
    summary="LTX-Video 2B (0.9.5, 0.9.6), text to video, 8n+1 frames up to 704x1280",
    weights=LTX_2B_WEIGHTS,
    window=(530, 993),
    cost=_COST,
    takes_conditions=True,
)
LTX_13B_MODEL = LtxModel(
    name="ltx_13b",
    num_layers=48,
    summary="LTX-Video 13B (0.9.7, 0.9.8), text to video, 8n+1 frames up to 704x1280",
    weights=LTX_13B_WEIGHTS,
    window=(530, 993),
    cost=_COST_13B,
    takes_conditions=True,
    guidance_scale=5.0,
)
LTX_13B_DISTILLED_MODEL = replace(
    LTX_13B_MODEL,
    name="ltx_13b_distilled",
    summary="LTX-Video 13B distilled (0.9.7, 0.9.8), text to video in eight steps of one pass",
    weights=LTX_13B_DISTILLED_WEIGHTS,
    cost=_COST_13B_ONE_PASS,
    is_distilled=True,
    guidance_scale=1.0,
)
