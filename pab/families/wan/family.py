"""Wan 2.1 and 2.2, text and image to video (arXiv 2503.20314), through the diffusers library.

Ranges of arXiv 2408.12588 as published for the nearest model, one with 3-D full attention (2 for self attention, 6 for
cross attention). What they do to Wan's published weights has not been measured; of the small trained Wan that ships
(`demo_wan`, the same class and shift) they keep 48 dB (docs/demo.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, pyramid
from pab.families.wan.config import (
    FIGURES,
    MAX_TEXT_TOKENS,
    NEGATIVE_PROMPT,
    SAMPLINGS,
    WAN22_5B_MODEL,
    WAN22_A14B_I2V_MODEL,
    WAN22_A14B_MODEL,
    WAN_14B_I2V_480P_MODEL,
    WAN_14B_I2V_720P_MODEL,
    WAN_14B_MODEL,
    WAN_MODEL,
    WanModel,
)
from pab.families.wan.loras import wan_loras
from pab.families.wan.sites import wan_sites
from pab.families.wan.weights import wan_weights
from pab.family import MODEL_LIBRARIES, ClipDefaults, ClipLimits, Family, LoadRequest
from pab.weights.checkpoint import checkpoint_digest, find_checkpoint, pin

if TYPE_CHECKING:
    from pab.model import VideoModel


def wan_family(model: WanModel) -> Family:
    """Returns the family of one published model."""
    published = wan_weights(model.hub_id, two_experts=model.boundary is not None, image_encoder=model.reads_image)

    def load(request: LoadRequest) -> VideoModel:
        from pab.families.wan.load import load_wan

        return load_wan(find_checkpoint(request.weights, published), request, model)

    def write_tiny(folder: Path, seed: int) -> None:
        from pab.families.wan.tiny import write_small_wan

        write_small_wan(folder, seed, model)

    return Family(
        name=model.name,
        summary=model.summary,
        defaults=ClipDefaults(
            num_frames=model.num_frames,
            height=model.height,
            width=model.width,
            fps=model.fps,
            num_steps=model.num_steps,
            guidance_scale=model.guidance_scale,
            broadcast="pab2-6",
        ),
        limits=ClipLimits(
            num_frames=range(5, 122, 4),
            height=range(model.token_side, 1281, model.token_side),
            width=range(model.token_side, 1281, model.token_side),
            fps=range(1, 61),
            num_steps=range(1, 1001),
            guidance_scale=(1.0, 30.0),
            max_tokens=model.num_tokens(121, 720, 1280),
            max_prompt_chars=4000,
            images=not model.from_image,
        ),
        sites=wan_sites(model.num_layers),
        presets={
            "none": NO_BROADCAST,
            "pab2-6": pyramid(2, None, 6, window=(100, 850)),
            "pab3-6": pyramid(3, None, 6, window=(100, 850)),
            **(FORESIGHT_PRESETS if model.boundary is None else {}),
        },
        timesteps=model.timesteps,
        cache_reset_steps=model.cache_reset_steps,
        num_tokens=model.num_tokens,
        cost=model.cost,
        figures=FIGURES.get(model.name, ()),
        load=load,
        libraries=(*MODEL_LIBRARIES, "ftfy"),
        compiles=True,
        fused_kernels=True,
        float8=True,
        float8_attention=True,
        fast_decode=True,
        keeps_blocks=model.boundary is None,
        loras=wan_loras(two_experts=model.boundary is not None),
        samplings={name: SAMPLINGS[name] for name in model.few_steps},
        flow_shift=model.shift,
        second_guidance=model.boundary is not None,
        published_negative=NEGATIVE_PROMPT,
        write_tiny=write_tiny,
        references=model.references,
        weights_digest=lambda weights: checkpoint_digest(weights, published),
        text_tokens=MAX_TEXT_TOKENS,
        pin=lambda weights: pin(weights, published),
    )


WAN, WAN_14B, WAN22_A14B, WAN22_5B = (
    wan_family(model) for model in (WAN_MODEL, WAN_14B_MODEL, WAN22_A14B_MODEL, WAN22_5B_MODEL)
)
WAN_14B_I2V_480P, WAN_14B_I2V_720P, WAN22_A14B_I2V = (
    wan_family(model) for model in (WAN_14B_I2V_480P_MODEL, WAN_14B_I2V_720P_MODEL, WAN22_A14B_I2V_MODEL)
)
