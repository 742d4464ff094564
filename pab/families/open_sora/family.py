"""Open-Sora 1.2: text to video at 144p to 720p, 2 to 16 seconds, 30 steps of rectified flow (arXiv 2408.12588, table 1)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, MlpRule, pyramid
from pab.families.open_sora.config import DEPTH, FIGURES, MAX_TEXT_TOKENS, MAX_TOKENS, REFERENCES
from pab.families.open_sora.levels import seen_levels
from pab.families.open_sora.sites import stdit3_sites
from pab.families.open_sora.sizes import (
    CHUNK_FRAMES,
    LATENT_STRIDE,
    LENGTHS,
    SIZES,
    image_size,
    latent_frames,
    num_tokens,
    rendered_size,
)
from pab.families.open_sora.weights import PARTS, digest, find_weights
from pab.family import MAX_BATCH, MODEL_LIBRARIES, ClipDefaults, ClipLimits, Family, LoadRequest, QualityFloor
from pab.text.prompt_cleaning import CLEANING_LIBRARIES, clean
from pab.text.token_count import SPIECE_LIBRARIES

if TYPE_CHECKING:
    from pab.model import VideoModel

_WINDOW = (450, 930)

_MLP = tuple(
    # The published keys 864, 788 and 676 are steps 13, 17 and 21 of 30 at 480p, 51 frames, in bfloat16.
    MlpRule(stack=stack, blocks=(0, 1, 2, 3, 4), skip_count=2, position=step / 30)
    for stack in ("spatial", "temporal")
    for step in (13, 17, 21)
)


def load_open_sora(request: LoadRequest) -> VideoModel:
    """Loads the published weights, or those in the folder or hub repository that `request.weights` names."""
    from pab.families.open_sora.load import load_video_model

    return load_video_model(find_weights(request.weights), request)


def write_tiny(folder: Path, seed: int) -> None:
    """Writes a small model with random weights in the published layout."""
    from pab.families.open_sora.tiny import write_tiny_open_sora

    write_tiny_open_sora(folder, seed)


def _rendered_range(dim: int) -> range:
    """Returns the heights (0) or widths (1) between the smallest and the largest of the table, in whole latents."""
    sizes = [rendered_size(*size)[dim] for sizes in SIZES.values() for size in sizes]
    return range(min(sizes), max(sizes) + 1, LATENT_STRIDE)


_HEIGHT, _WIDTH = rendered_size(*image_size("480p", "9:16"))

OPEN_SORA = Family(
    name="open_sora",
    summary="Open-Sora 1.2, text to video, 144p to 720p, 51 frames (2 s) to 408 (16 s), and images",
    defaults=ClipDefaults(
        num_frames=LENGTHS["2s"],
        height=_HEIGHT,
        width=_WIDTH,
        fps=24,
        num_steps=30,
        guidance_scale=7.0,
        broadcast="pab246",
    ),
    limits=ClipLimits(
        num_frames=range(CHUNK_FRAMES, LENGTHS["16s"] + 1, CHUNK_FRAMES),
        height=_rendered_range(0),
        width=_rendered_range(1),
        fps=range(1, 61),
        num_steps=range(1, 1001),
        guidance_scale=(1.0, 30.0),
        max_tokens=MAX_TOKENS,
        max_prompt_chars=4000,
        images=True,
    ),
    sites=stdit3_sites(DEPTH),
    presets={
        "none": NO_BROADCAST,
        "pab246": pyramid(2, 4, 6, window=_WINDOW, mlp=_MLP),
        "pab357": pyramid(3, 5, 7, window=_WINDOW, mlp=_MLP),
        "pab579": pyramid(5, 7, 9, window=_WINDOW, mlp=_MLP),
        **FORESIGHT_PRESETS,
    },
    # Single clips lie below the mean of their preset: 5 dB are left to them.
    floor=QualityFloor(
        psnr_db=18.5, source="the paper's table 1: PAB246, 357 and 579 have 27.0, 24.5 and 23.6 dB on average"
    ),
    keeps_blocks=True,
    timesteps=seen_levels,
    num_tokens=num_tokens,
    cost=FIGURES[0],
    figures=FIGURES,
    latent_frames=latent_frames,
    load=load_open_sora,
    write_tiny=write_tiny,
    clean_prompt=clean,
    libraries=(*MODEL_LIBRARIES, *CLEANING_LIBRARIES, *SPIECE_LIBRARIES),
    references=REFERENCES,
    weights_digest=digest,
    text_tokens=MAX_TEXT_TOKENS,
    pin=PARTS.pin,
    compiles=True,
    rows_in_turn=True,
    max_batch=MAX_BATCH,
    prefers_cudnn=True,
    fused_kernels=True,
    fast_decode=True,
    float8=True,
    records_loops=True,
)
