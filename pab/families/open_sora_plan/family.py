"""Open-Sora-Plan 1.1.0 (150 steps of PNDM) and 1.2.0 (100 steps of Euler ancestral); presets of arXiv 2408.12588's code.

Every published checkpoint is a family of its own, since its clip length and size are what it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, MlpRule, Rules, pyramid
from pab.families.latte.sites import latte_sites
from pab.families.open_sora_plan.config import (
    _COST_V120,
    DEPTH_V110,
    DEPTH_V120,
    FIGURES,
    MAX_TEXT_TOKENS_V110,
    MAX_TEXT_TOKENS_V120,
    STEPS_V110,
    STEPS_V120,
    Checkpoint,
    plan_latent_frames,
    plan_tokens,
    v110_timesteps,
    v120_timesteps,
)
from pab.families.open_sora_plan.sites import open_sora_plan_sites
from pab.families.open_sora_plan.weights import MT5_XXL, T5_XXL, published_parts
from pab.family import MAX_BATCH, MODEL_LIBRARIES, ClipDefaults, ClipLimits, Family, LoadRequest
from pab.sampling.samplers import pndm_timesteps
from pab.text.prompt_cleaning import CLEANING_LIBRARIES, clean
from pab.text.token_count import SPIECE_LIBRARIES

if TYPE_CHECKING:
    from pab.model import VideoModel

WINDOW = (100, 850)

_CALLS = pndm_timesteps(STEPS_V110)

_MLP = tuple(
    # The published keys, as positions among the 159 published calls, so that they fit other step counts.
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


_LIBRARIES = (*MODEL_LIBRARIES, *CLEANING_LIBRARIES, *SPIECE_LIBRARIES)


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


def _v110(name: str, checkpoint: Checkpoint, *, write_tiny: Callable[[Path, int], None] | None = None) -> Family:
    parts = published_parts("LanguageBind/Open-Sora-Plan-v1.1.0", transformer=checkpoint.folder, text_encoder=T5_XXL)

    def load(request: LoadRequest) -> VideoModel:
        from pab.families.open_sora_plan.load import load_v110

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
        cost=FIGURES[0],
        figures=FIGURES,
        latent_frames=plan_latent_frames,
        load=load,
        write_tiny=write_tiny,
        weights_digest=parts.digest,
        clean_prompt=clean,
        libraries=_LIBRARIES,
        text_tokens=MAX_TEXT_TOKENS_V110,
        pin=parts.pin,
        compiles=True,
        rows_in_turn=True,
        max_batch=MAX_BATCH,
        prefers_cudnn=True,
        fused_kernels=True,
        float8=True,
    )


def _v120(name: str, checkpoint: Checkpoint, *, write_tiny: Callable[[Path, int], None] | None = None) -> Family:
    parts = published_parts("LanguageBind/Open-Sora-Plan-v1.2.0", transformer=checkpoint.folder, text_encoder=MT5_XXL)

    def load(request: LoadRequest) -> VideoModel:
        from pab.families.open_sora_plan.load import load_v120

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
        write_tiny=write_tiny,
        weights_digest=parts.digest,
        clean_prompt=partial(clean, keep_ideographs=True),
        libraries=_LIBRARIES,
        text_tokens=MAX_TEXT_TOKENS_V120,
        pin=parts.pin,
        compiles=True,
        rows_in_turn=True,
        max_batch=MAX_BATCH,
    )


def write_tiny_v110(folder: Path, seed: int) -> None:
    """Writes a small model of version 1.1.0 with random weights in the published layout."""
    from pab.families.open_sora_plan import tiny

    tiny.write_tiny_v110(folder, seed)


def write_tiny_v120(folder: Path, seed: int) -> None:
    """Writes a small model of version 1.2.0 with random weights in the published layout."""
    from pab.families.open_sora_plan import tiny

    tiny.write_tiny_v120(folder, seed)


OPEN_SORA_PLAN_V110 = _v110(
    "open_sora_plan_v110",
    Checkpoint(folder="65x512x512", num_frames=65, height=512, width=512),
    write_tiny=write_tiny_v110,
)

OPEN_SORA_PLAN_V110_221 = _v110(
    "open_sora_plan_v110_221", Checkpoint(folder="221x512x512", num_frames=221, height=512, width=512)
)

OPEN_SORA_PLAN_V120 = _v120(
    "open_sora_plan_v120",
    Checkpoint(folder="93x480p", num_frames=93, height=480, width=640),
    write_tiny=write_tiny_v120,
)

OPEN_SORA_PLAN_V120_29 = _v120(
    "open_sora_plan_v120_29", Checkpoint(folder="29x480p", num_frames=29, height=480, width=640)
)

OPEN_SORA_PLAN_V120_720P = _v120(
    "open_sora_plan_v120_720p", Checkpoint(folder="93x720p", num_frames=93, height=720, width=1280)
)
