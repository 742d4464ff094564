"""LTX-2 19B (2.0, arXiv 2601.03233), text to video with sound, through the diffusers library.

Defaults are those with which its `LTX2Pipeline` was published: 40 steps, guidance 4 by the text alone, for video and sound.
No broadcast ranges are published for it: they are those of the nearest model of arXiv 2408.12588, one with 3-D full
attention (2 for self attention, 6 for the cross attention to the text). The window is what lies between the first and the
last 15 % of the steps of the default clip, as that paper found; what they do to LTX-2's videos has not been measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, pyramid
from pab.families.ltx2.config import (
    COST,
    HEIGHT,
    LTX2_MODEL,
    NUM_FRAMES,
    WIDTH,
    Ltx2Model,
    ltx2_timesteps,
    ltx2_tokens,
)
from pab.families.ltx2.loras import LTX2_LORAS
from pab.families.ltx2.sites import ltx2_sites
from pab.families.ltx2.weights import LTX2_WEIGHTS
from pab.family import ClipDefaults, ClipLimits, Family, LoadRequest
from pab.library.stretched_levels import MIN_STEPS, NUM_TRAIN_TIMESTEPS
from pab.weights.checkpoint import checkpoint_digest, find_checkpoint, pin

if TYPE_CHECKING:
    from pab.model import VideoModel

WINDOW = (690, 988)


def ltx2_family(model: Ltx2Model) -> Family:
    """Returns the family of one model."""

    def load(request: LoadRequest) -> VideoModel:
        from pab.families.ltx2.load import load_ltx2

        return load_ltx2(find_checkpoint(request.weights, LTX2_WEIGHTS), request, model)

    def write_tiny(folder: Path, seed: int) -> None:
        from pab.families.ltx2.tiny import write_small_ltx2

        write_small_ltx2(folder, seed, model)

    return Family(
        name=model.name,
        summary="LTX-2 19B, text to video with sound, 8n+1 frames, best at 121 of 512x768",
        defaults=ClipDefaults(
            num_frames=NUM_FRAMES,
            height=HEIGHT,
            width=WIDTH,
            fps=24,
            num_steps=40,
            guidance_scale=4.0,
            broadcast="pab2-6",
        ),
        limits=ClipLimits(
            num_frames=range(9, 482, 8),
            height=range(32, 1921, 32),
            width=range(32, 1921, 32),
            fps=range(1, 61),
            num_steps=range(MIN_STEPS, NUM_TRAIN_TIMESTEPS + 1),
            guidance_scale=(1.0, 30.0),
            max_tokens=ltx2_tokens(257, 704, 1280),
            max_prompt_chars=8000,
        ),
        sites=ltx2_sites(model.num_layers),
        presets={
            "none": NO_BROADCAST,
            "pab2-6": pyramid(2, None, 6, window=WINDOW),
            "pab3-6": pyramid(3, None, 6, window=WINDOW),
            **FORESIGHT_PRESETS,
        },
        timesteps=ltx2_timesteps,
        num_tokens=ltx2_tokens,
        cost=COST,
        load=load,
        compiles=True,
        fused_kernels=True,
        fast_decode=True,
        float8=True,
        keeps_blocks=True,
        loras=LTX2_LORAS,
        write_tiny=write_tiny,
        weights_digest=lambda weights: checkpoint_digest(weights, LTX2_WEIGHTS),
        text_tokens=LTX2_MODEL.max_text_tokens,
        pin=lambda weights: pin(weights, LTX2_WEIGHTS),
    )


LTX2 = ltx2_family(LTX2_MODEL)
