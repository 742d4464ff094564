"""LTX-Video 0.9.0 and 0.9.1, text and image to video (arXiv 2501.00103), through the diffusers library.

No broadcast ranges are published for it: they are those of the nearest model of arXiv 2408.12588, one with 3-D full
attention (2 for self attention, 6 for cross attention). The window is what lies between the first and the last 15 % of
the steps of the default clip, as that paper found; what they do to LTX-Video's videos has not been measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, pyramid
from pab.conditioning.references import first_image_rules
from pab.families.ltx.config import (
    _COST,
    HEIGHT,
    LTX_MODEL,
    NEGATIVE_PROMPT,
    NUM_FRAMES,
    SAMPLINGS,
    WIDTH,
    LtxModel,
    ltx_latent_frames,
    ltx_timesteps,
    ltx_tokens,
)
from pab.families.ltx.levels import MIN_STEPS, NUM_TRAIN_TIMESTEPS
from pab.families.ltx.loras import LTX_LORAS
from pab.families.ltx.sites import ltx_sites
from pab.families.ltx.weights import LTX_WEIGHTS
from pab.family import ClipDefaults, ClipLimits, Family, LoadRequest
from pab.weights.checkpoint import checkpoint_digest, find_checkpoint, pin

if TYPE_CHECKING:
    from pab.model import VideoModel

WINDOW = (750, 990)


def ltx_family(model: LtxModel) -> Family:
    """Returns the family of one model."""

    def load(request: LoadRequest) -> VideoModel:
        from pab.families.ltx.load import load_ltx

        return load_ltx(find_checkpoint(request.weights, LTX_WEIGHTS), request, model)

    def write_tiny(folder: Path, seed: int) -> None:
        from pab.families.ltx.tiny import write_small_ltx

        write_small_ltx(folder, seed, model)

    return Family(
        name=model.name,
        summary="LTX-Video 2B (0.9.0, 0.9.1), text or image to video, 8n+1 frames up to 704x1280",
        defaults=ClipDefaults(
            num_frames=NUM_FRAMES,
            height=HEIGHT,
            width=WIDTH,
            fps=25,
            num_steps=50,
            guidance_scale=3.0,
            broadcast="pab2-6",
        ),
        limits=ClipLimits(
            num_frames=range(9, 258, 8),
            height=range(32, 1281, 32),
            width=range(32, 1281, 32),
            fps=range(1, 61),
            num_steps=range(MIN_STEPS, NUM_TRAIN_TIMESTEPS + 1),
            guidance_scale=(1.0, 30.0),
            max_tokens=ltx_tokens(257, 704, 1280),
            max_prompt_chars=4000,
            images=True,
        ),
        sites=ltx_sites(model.num_layers),
        presets={
            "none": NO_BROADCAST,
            "pab2-6": pyramid(2, None, 6, window=WINDOW),
            "pab3-6": pyramid(3, None, 6, window=WINDOW),
            **FORESIGHT_PRESETS,
        },
        timesteps=ltx_timesteps,
        num_tokens=ltx_tokens,
        cost=_COST,
        load=load,
        compiles=True,
        fused_kernels=True,
        float8=True,
        keeps_blocks=True,
        loras=LTX_LORAS,
        samplings=SAMPLINGS,
        published_negative=NEGATIVE_PROMPT,
        write_tiny=write_tiny,
        references=first_image_rules(ltx_latent_frames),
        weights_digest=lambda weights: checkpoint_digest(weights, LTX_WEIGHTS),
        pin=lambda weights: pin(weights, LTX_WEIGHTS),
    )


LTX = ltx_family(LTX_MODEL)
