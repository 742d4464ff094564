"""Latte-1: text to 16 frames of 512x512, 50 steps of DDIM (arXiv 2401.03048; presets of arXiv 2408.12588, appendix)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, BroadcastRules, MlpRule, pyramid
from pab.families.latte.config import (
    DEPTH,
    FIGURES,
    MAX_TEXT_TOKENS,
    NUM_FRAMES,
    NUM_STEPS,
    latte_timesteps,
    latte_tokens,
)
from pab.families.latte.sites import latte_sites
from pab.families.latte.weights import PARTS
from pab.family import MAX_BATCH, MODEL_LIBRARIES, ClipDefaults, ClipLimits, Family, LoadRequest
from pab.sampling.samplers import ddim_timesteps
from pab.text.prompt_cleaning import CLEANING_LIBRARIES, clean
from pab.text.token_count import SPIECE_LIBRARIES

if TYPE_CHECKING:
    from pab.model import VideoModel

_KEYS = (720, 640, 560, 480, 400)

_MLP = tuple(
    # The published keys, as positions among the 50 published timesteps, so that they fit other step counts.
    MlpRule(
        stack=stack, blocks=tuple(range(5)), skip_count=2, position=ddim_timesteps(NUM_STEPS).index(key) / NUM_STEPS
    )
    for stack in ("spatial", "temporal")
    for key in _KEYS
)


def _preset(spatial: int, temporal: int, cross: int) -> BroadcastRules:
    return pyramid(spatial, temporal, cross, window=(100, 800), mlp=_MLP)


def load_latte(request: LoadRequest) -> VideoModel:
    """Loads the published weights, or those in the folder or hub repository that `request.weights` names."""
    from pab.families.latte.load import load_video_model

    return load_video_model(PARTS.find(request.weights), request)


def write_tiny(folder: Path, seed: int) -> None:
    """Writes a small model with random weights in the published layout."""
    from pab.families.latte.tiny import write_tiny_latte

    write_tiny_latte(folder, seed)


LATTE = Family(
    name="latte",
    summary="Latte-1, text to video, 16 frames of 512x512",
    defaults=ClipDefaults(
        num_frames=NUM_FRAMES,
        height=512,
        width=512,
        fps=8,
        num_steps=NUM_STEPS,
        guidance_scale=7.5,
        broadcast="pab236",
    ),
    limits=ClipLimits(
        num_frames=range(NUM_FRAMES, NUM_FRAMES + 1),
        height=range(256, 769, 16),
        width=range(256, 769, 16),
        fps=range(1, 61),
        num_steps=range(1, 1001),
        guidance_scale=(1.0, 30.0),
        max_tokens=latte_tokens(NUM_FRAMES, 768, 768),
        max_prompt_chars=2000,
    ),
    sites=latte_sites(DEPTH),
    presets={
        "none": NO_BROADCAST,
        "pab235": _preset(2, 3, 5),  # as in the paper
        "pab236": _preset(2, 3, 6),  # as in its code
        "pab347": _preset(3, 4, 7),
        "pab469": _preset(4, 6, 9),
        **FORESIGHT_PRESETS,
    },
    keeps_blocks=True,
    timesteps=latte_timesteps,
    num_tokens=latte_tokens,
    cost=FIGURES[0],
    figures=FIGURES,
    latent_frames=lambda num_frames: num_frames,
    load=load_latte,
    write_tiny=write_tiny,
    weights_digest=PARTS.digest,
    clean_prompt=clean,
    libraries=(*MODEL_LIBRARIES, *CLEANING_LIBRARIES, *SPIECE_LIBRARIES),
    text_tokens=MAX_TEXT_TOKENS,
    pin=PARTS.pin,
    compiles=True,
    rows_in_turn=True,
    max_batch=MAX_BATCH,
    prefers_cudnn=True,
    fused_kernels=True,
    float8=True,
)
