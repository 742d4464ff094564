"""LTX-Video 2B and 13B, 0.9.0 to 0.9.8, from text, and up to 0.9.1 from an image too (arXiv 2501.00103), over diffusers.

Defaults and limits are those of its `LTXPipeline` (0.9.0, 0.9.1) and, from 0.9.5 on, `LTXConditionPipeline` without
conditions; the guidance of the 13B models is what its documentation recommends.

No broadcast ranges are published for it: they are those of the nearest model of arXiv 2408.12588, one with 3-D full
attention (2 for self attention, 6 for cross attention). The window is what lies between the first and the last 15 % of
the steps of the default clip, as that paper found; what they do to LTX-Video's videos has not been measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, Rules, pyramid
from pab.conditioning.references import first_image_rules
from pab.families.ltx.config import (
    FIGURES,
    HEIGHT,
    LTX_2B_MODEL,
    LTX_13B_DISTILLED_MODEL,
    LTX_13B_MODEL,
    LTX_MODEL,
    NEGATIVE_PROMPT,
    NUM_FRAMES,
    SAMPLINGS,
    WIDTH,
    LtxModel,
    ltx_latent_frames,
    ltx_tokens,
)
from pab.families.ltx.levels import DISTILLED_TIMESTEPS
from pab.families.ltx.loras import LTX_LORAS
from pab.families.ltx.sites import ltx_sites
from pab.family import MODEL_LIBRARIES, ClipDefaults, ClipLimits, Family, LoadRequest
from pab.library.stretched_levels import MIN_STEPS, NUM_TRAIN_TIMESTEPS
from pab.text.token_count import SPIECE_LIBRARIES
from pab.weights.checkpoint import checkpoint_digest, find_checkpoint, pin

if TYPE_CHECKING:
    from pab.model import VideoModel


def ltx_family(model: LtxModel) -> Family:
    """Returns the family of one model."""

    def load(request: LoadRequest) -> VideoModel:
        from pab.families.ltx.load import load_ltx

        return load_ltx(find_checkpoint(request.weights, model.weights), request, model)

    def write_tiny(folder: Path, seed: int) -> None:
        from pab.families.ltx.tiny import write_small_ltx

        write_small_ltx(folder, seed, model)

    steps = len(DISTILLED_TIMESTEPS)
    presets: dict[str, Rules] = {"none": NO_BROADCAST}
    if not model.is_distilled:  # at eight steps nothing is like the step before
        presets["pab2-6"] = pyramid(2, None, 6, window=model.window)
        presets["pab3-6"] = pyramid(3, None, 6, window=model.window)
        presets.update(FORESIGHT_PRESETS)

    return Family(
        name=model.name,
        summary=model.summary,
        defaults=ClipDefaults(
            num_frames=NUM_FRAMES,
            height=HEIGHT,
            width=WIDTH,
            fps=25,
            num_steps=steps if model.is_distilled else 50,
            guidance_scale=model.guidance_scale,
            broadcast="none" if model.is_distilled else "pab2-6",
        ),
        limits=ClipLimits(
            num_frames=range(9, 258, 8),
            height=range(32, 1281, 32),
            width=range(32, 1281, 32),
            fps=range(1, 61),
            num_steps=range(steps, steps + 1) if model.is_distilled else range(MIN_STEPS, NUM_TRAIN_TIMESTEPS + 1),
            guidance_scale=(1.0, 1.0 if model.is_distilled else 30.0),
            max_tokens=ltx_tokens(257, 704, 1280),
            max_prompt_chars=4000,
            images=True,
        ),
        sites=ltx_sites(model.num_layers),
        presets=presets,
        timesteps=model.clip_timesteps,
        num_tokens=ltx_tokens,
        cost=model.cost,
        figures=FIGURES.get(model.name, ()),
        load=load,
        libraries=(*MODEL_LIBRARIES, *SPIECE_LIBRARIES),
        compiles=True,
        fused_kernels=True,
        fast_decode=True,
        float8=True,
        keeps_blocks=True,
        loras=LTX_LORAS,
        samplings={} if model.takes_conditions else SAMPLINGS,
        published_negative=None if model.is_distilled else NEGATIVE_PROMPT,
        write_tiny=write_tiny,
        references=None if model.takes_conditions else first_image_rules(ltx_latent_frames),
        weights_digest=lambda weights: checkpoint_digest(weights, model.weights),
        text_tokens=model.max_text_tokens,
        pin=lambda weights: pin(weights, model.weights),
    )


LTX, LTX_2B, LTX_13B, LTX_13B_DISTILLED = (
    ltx_family(model) for model in (LTX_MODEL, LTX_2B_MODEL, LTX_13B_MODEL, LTX_13B_DISTILLED_MODEL)
)
