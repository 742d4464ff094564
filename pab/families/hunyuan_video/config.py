"""Sizes and constants of HunyuanVideo and SkyReels V1, and how they differ. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from pab.families.hunyuan_video.levels import SHIFT, moved_timesteps
from pab.families.hunyuan_video.weights import HUNYUAN_VIDEO_WEIGHTS, SKYREELS_WEIGHTS, HunyuanWeights
from pab.family import ClipRequest, CostFigures, MemoryFigures

MAX_FRAMES, MAX_SHORT_SIDE, MAX_LONG_SIDE = 129, 720, 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanModel:
    """How the published models differ.

    `told_guidance`: the guidance scale that the transformer takes as an input for every clip; the clip's own scale then
    guides by two branches. None: the transformer is distilled, and takes the clip's own scale in one pass.
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


def hunyuan_video_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching: 16x16 pixels each, of the first frame and of every four that follow."""
    return ((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def hunyuan_video_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns the timesteps: float32 values, embedded in float32 whatever the model's precision."""
    return moved_timesteps(request.num_steps, SHIFT if request.flow_shift is None else request.flow_shift)


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak. One pass a step, and two.
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
