"""CogVideoX 2B and 5B, text or image to 49 frames of 480x720 (arXiv 2408.06072), through diffusers.

Presets of arXiv 2408.12588.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, pyramid
from pab.conditioning.references import first_image_rules
from pab.families.cogvideox.config import (
    COGVIDEOX_2B_MODEL,
    COGVIDEOX_5B_I2V_MODEL,
    COGVIDEOX_5B_MODEL,
    FIGURES,
    HEIGHT,
    MAX_TEXT_TOKENS,
    NUM_FRAMES,
    SAMPLINGS,
    WIDTH,
    CogVideoXModel,
    cogvideox_latent_frames,
    cogvideox_timesteps,
    cogvideox_tokens,
)
from pab.families.cogvideox.sites import cogvideox_sites
from pab.families.cogvideox.weights import cogvideox_weights
from pab.family import MODEL_LIBRARIES, ClipDefaults, ClipLimits, Family, LoadRequest
from pab.text.token_count import SPIECE_LIBRARIES
from pab.weights.checkpoint import checkpoint_digest, find_checkpoint, pin
from pab.weights.lora import LoraRules

if TYPE_CHECKING:
    from pab.model import VideoModel


def _only(value: int) -> range:
    return range(value, value + 1)


def cogvideox_family(model: CogVideoXModel) -> Family:
    """Returns the family of one published model."""
    published = cogvideox_weights(model.hub_id)

    def load(request: LoadRequest) -> VideoModel:
        from pab.families.cogvideox.load import load_cogvideox

        return load_cogvideox(find_checkpoint(request.weights, published), request, model)

    def write_tiny(folder: Path, seed: int) -> None:
        from pab.families.cogvideox.tiny import write_small_cogvideox

        write_small_cogvideox(folder, seed, model)

    return Family(
        name=model.name,
        summary=model.summary,
        defaults=ClipDefaults(
            num_frames=model.num_frames,
            height=model.height,
            width=model.width,
            fps=8,
            num_steps=50,
            guidance_scale=6.0,
            broadcast="pab2",
        ),
        limits=ClipLimits(
            # The VAE decodes an odd number of latent frames.
            num_frames=_only(model.num_frames) if model.from_image else range(9, NUM_FRAMES + 1, 8),
            height=_only(model.height) if model.from_image else range(16, 769, 16),
            width=_only(model.width) if model.from_image else range(16, 769, 16),
            fps=range(1, 61),
            num_steps=range(1, 1001),
            guidance_scale=(1.0, 30.0),
            max_tokens=cogvideox_tokens(NUM_FRAMES, HEIGHT, WIDTH),
            max_prompt_chars=4000,
        ),
        sites=cogvideox_sites(model.num_layers),
        presets={
            "none": NO_BROADCAST,
            "pab2": pyramid(2, None, None, window=(100, 850)),
            "pab3": pyramid(3, None, None, window=(100, 850)),
            **FORESIGHT_PRESETS,
        },
        timesteps=cogvideox_timesteps,
        num_tokens=cogvideox_tokens,
        cost=model.cost,
        figures=FIGURES.get(model.name, ()),
        load=load,
        libraries=(*MODEL_LIBRARIES, *SPIECE_LIBRARIES),
        compiles=True,
        fused_kernels=True,
        fast_decode=True,
        decoder_compile_s=55.0,
        float8=True,
        keeps_blocks=True,
        loras=LoraRules(),
        samplings=SAMPLINGS,
        write_tiny=write_tiny,
        references=first_image_rules(cogvideox_latent_frames, required=True) if model.from_image else None,
        weights_digest=lambda weights: checkpoint_digest(weights, published),
        text_tokens=MAX_TEXT_TOKENS,
        pin=lambda weights: pin(weights, published),
    )


COGVIDEOX_2B, COGVIDEOX_5B, COGVIDEOX_5B_I2V = (
    cogvideox_family(model) for model in (COGVIDEOX_2B_MODEL, COGVIDEOX_5B_MODEL, COGVIDEOX_5B_I2V_MODEL)
)
