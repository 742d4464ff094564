"""Open-Sora-Plan 1.1.0 (150 steps of PNDM) and 1.2.0 (100 steps of Euler ancestral); presets of arXiv 2408.12588's code.

Every published checkpoint is a family of its own, since its clip length and size are what it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pab.diffusion import euler_ancestral_timesteps, pndm_timesteps
from pab.family import MAX_BATCH, ClipDefaults, ClipLimits, ClipRequest, CostFigures, Family, LoadRequest, MemoryFigures
from pab.foresight import FORESIGHT_PRESETS
from pab.open_sora_plan.weights import MT5_XXL, T5_XXL, published_parts
from pab.rules import NO_BROADCAST, MlpRule, Rules, pyramid
from pab.sites import latte_sites, open_sora_plan_sites

if TYPE_CHECKING:
    from pab.model import VideoModel

DEPTH_V110, DEPTH_V120 = 28, 32
MAX_TEXT_TOKENS_V110, MAX_TEXT_TOKENS_V120 = 300, 512
STEPS_V110, STEPS_V120 = 150, 100
WINDOW = (100, 850)

_CALLS = pndm_timesteps(STEPS_V110)
_MLP = tuple(
    # The published keys, told by their place among the 159 published calls, so that they fit other step counts.
    MlpRule(stack=stack, blocks=tuple(range(7)), skip_count=2, position=_CALLS.index(key) / len(_CALLS))
    for stack in ("spatial", "temporal")
    for key in range(738, 425, -24)
)
PRESETS_V110: Mapping[str, Rules] = {
    "none": NO_BROADCAST,
    "pab246": pyramid(2, 4, 6, window=WINDOW, mlp=_MLP),
    "pab357": pyramid(3, 5, 7, window=WINDOW, mlp=_MLP),
    "pab579": pyramid(5, 7, 9, window=WINDOW, mlp=_MLP),
    **FORESIGHT_PRESETS,
}
PRESETS_V120: Mapping[str, Rules] = {
    "none": NO_BROADCAST,
    # The 3-D attention's range and the cross attention's; there is no temporal attention.
    "pab2-6": pyramid(2, None, 6, window=WINDOW),
    "pab5-9": pyramid(5, None, 9, window=WINDOW),
    **FORESIGHT_PRESETS,
}
# One H200, bfloat16, fused kernels, both guidance rows: a full step is 152 ms at 17,408 tokens (65 frames); its shares are
# Latte's, whose blocks are the same. Loading and decoding are not measured.
_COST_V110 = CostFigures(
    load_s=90.0,
    linear_s=8.2e-6,
    quadratic_s=6.0e-10,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.24, "temporal": 0.15, "cross": 0.09, "mlp": 0.48},
    decode_s_per_pixel=4e-7,
    memory=MemoryFigures(parameters=1.3e9, width=1152),
)
# Not measured: counted operations of 93 frames at 480x640 at half of an H200's rate. Attention grows with all tokens, the
# figure with a frame's, so it holds for about that length.
_COST_V120 = CostFigures(
    load_s=180.0,
    linear_s=2.2e-5,
    quadratic_s=2.9e-8,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.70, "cross": 0.08, "mlp": 0.20},
    decode_s_per_pixel=4e-7,
    memory=MemoryFigures(parameters=3.0e9, width=2304),
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


def _limits(checkpoint: Checkpoint, min_steps: int) -> ClipLimits:
    return ClipLimits(
        num_frames=range(checkpoint.num_frames, checkpoint.num_frames + 1),
        height=range(256, max(769, checkpoint.height + 1), 16),
        width=range(256, max(769, checkpoint.width + 1), 16),
        fps=range(1, 61),
        num_steps=range(min_steps, 1001),
        guidance_scale=(1.0, 30.0),
        max_tokens=max(
            plan_tokens(checkpoint.num_frames, checkpoint.height, checkpoint.width),
            plan_tokens(checkpoint.num_frames, 640, 640),
        ),
        max_prompt_chars=4000,
    )


def _defaults(checkpoint: Checkpoint, num_steps: int, broadcast: str) -> ClipDefaults:
    return ClipDefaults(
        num_frames=checkpoint.num_frames,
        height=checkpoint.height,
        width=checkpoint.width,
        fps=24,
        num_steps=num_steps,
        guidance_scale=7.5,
        broadcast=broadcast,
    )


def _v110(name: str, checkpoint: Checkpoint) -> Family:
    parts = published_parts("LanguageBind/Open-Sora-Plan-v1.1.0", transformer=checkpoint.folder, text_encoder=T5_XXL)

    def load(request: LoadRequest) -> VideoModel:
        from pab.open_sora_plan.load import load_v110

        return load_v110(parts.find(request.weights), request, latent_frames=(checkpoint.num_frames - 1) // 4 + 1)

    return Family(
        name=name,
        summary=f"Open-Sora-Plan 1.1.0, text to video, {checkpoint.folder}",
        defaults=_defaults(checkpoint, STEPS_V110, "pab246"),
        limits=_limits(checkpoint, min_steps=4),
        sites=latte_sites(DEPTH_V110),
        presets=PRESETS_V110,
        keeps_blocks=True,
        timesteps=v110_timesteps,
        num_tokens=plan_tokens,
        cost=_COST_V110,
        load=load,
        weights_digest=parts.digest,
        pin=parts.pin,
        compiles=True,
        max_batch=MAX_BATCH,
        prefers_cudnn=True,
        fused_kernels=True,
        float8=True,
    )


def _v120(name: str, checkpoint: Checkpoint) -> Family:
    parts = published_parts("LanguageBind/Open-Sora-Plan-v1.2.0", transformer=checkpoint.folder, text_encoder=MT5_XXL)

    def load(request: LoadRequest) -> VideoModel:
        from pab.open_sora_plan.load import load_v120

        return load_v120(parts.find(request.weights), request)

    return Family(
        name=name,
        summary=f"Open-Sora-Plan 1.2.0, text to video, {checkpoint.folder} ({checkpoint.height}x{checkpoint.width})",
        defaults=_defaults(checkpoint, STEPS_V120, "pab2-6"),
        limits=_limits(checkpoint, min_steps=1),
        sites=open_sora_plan_sites(DEPTH_V120),
        presets=PRESETS_V120,
        keeps_blocks=True,
        timesteps=v120_timesteps,
        num_tokens=plan_tokens,
        cost=_COST_V120,
        load=load,
        weights_digest=parts.digest,
        pin=parts.pin,
        compiles=True,
        max_batch=MAX_BATCH,
    )


OPEN_SORA_PLAN_V110 = _v110(
    "open_sora_plan_v110", Checkpoint(folder="65x512x512", num_frames=65, height=512, width=512)
)
OPEN_SORA_PLAN_V110_221 = _v110(
    "open_sora_plan_v110_221", Checkpoint(folder="221x512x512", num_frames=221, height=512, width=512)
)
OPEN_SORA_PLAN_V120 = _v120("open_sora_plan_v120", Checkpoint(folder="93x480p", num_frames=93, height=480, width=640))
OPEN_SORA_PLAN_V120_29 = _v120(
    "open_sora_plan_v120_29", Checkpoint(folder="29x480p", num_frames=29, height=480, width=640)
)
OPEN_SORA_PLAN_V120_720P = _v120(
    "open_sora_plan_v120_720p", Checkpoint(folder="93x720p", num_frames=93, height=720, width=1280)
)
