"""HunyuanVideo 1.5 (arXiv 2511.18870), 480p and 720p, text to video, through the diffusers library.

Defaults are those of its `HunyuanVideo15Pipeline` and of the guider and scheduler in the published folders. No broadcast
ranges are published for it: they are those of the nearest model of arXiv 2408.12588, CogVideoX, whose attention is joint as
well. The window is what lies between the first and the last 15 % of the steps, as that paper found; what they do to these
models' videos has not been measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, pyramid
from pab.families.hunyuan_video_15.config import (
    MAX_FRAMES,
    MODEL_480P,
    MODEL_720P,
    Hunyuan15Model,
    hunyuan_video_15_tokens,
)
from pab.families.hunyuan_video_15.loras import HUNYUAN_VIDEO_15_LORAS
from pab.families.hunyuan_video_15.sites import hunyuan_video_15_sites
from pab.family import ClipDefaults, ClipLimits, Family, LoadRequest
from pab.library.even_levels import NUM_TRAIN_TIMESTEPS
from pab.weights.checkpoint import checkpoint_digest, find_checkpoint, pin

if TYPE_CHECKING:
    from pab.model import VideoModel


def hunyuan_video_15_family(model: Hunyuan15Model) -> Family:
    """Returns the family of one published model."""

    def load(request: LoadRequest) -> VideoModel:
        from pab.families.hunyuan_video_15.load import load_hunyuan_video_15

        return load_hunyuan_video_15(find_checkpoint(request.weights, model.weights), request, model)

    def write_tiny(folder: Path, seed: int) -> None:
        from pab.families.hunyuan_video_15.tiny import write_small_hunyuan_video_15

        write_small_hunyuan_video_15(folder, seed, model)

    return Family(
        name=model.name,
        summary=model.summary,
        defaults=ClipDefaults(
            num_frames=121,
            height=model.height,
            width=model.width,
            fps=24,
            num_steps=50,
            guidance_scale=6.0,
            broadcast="pab2",
        ),
        limits=ClipLimits(
            num_frames=range(5, MAX_FRAMES + 1, 4),
            height=range(16, 1281, 16),
            width=range(16, 1281, 16),
            fps=range(1, 61),
            num_steps=range(1, NUM_TRAIN_TIMESTEPS + 1),
            guidance_scale=(1.0, 30.0),
            max_tokens=hunyuan_video_15_tokens(MAX_FRAMES, model.height, model.width),
            max_prompt_chars=8000,
            images=True,
        ),
        sites=hunyuan_video_15_sites(model.num_layers),
        presets={
            "none": NO_BROADCAST,
            "pab2": pyramid(2, None, None, window=model.window),
            "pab3": pyramid(3, None, None, window=model.window),
            **FORESIGHT_PRESETS,
        },
        timesteps=model.timesteps,
        num_tokens=hunyuan_video_15_tokens,
        cost=model.cost,
        load=load,
        compiles=True,
        fused_kernels=True,
        fast_decode=True,
        float8=True,
        float8_attention=True,
        keeps_blocks=True,
        loras=HUNYUAN_VIDEO_15_LORAS,
        write_tiny=write_tiny,
        weights_digest=lambda weights: checkpoint_digest(weights, model.weights),
        text_tokens=model.max_text_tokens,
        pin=lambda weights: pin(weights, model.weights),
    )


HUNYUAN_VIDEO_15_480P, HUNYUAN_VIDEO_15_720P = (hunyuan_video_15_family(model) for model in (MODEL_480P, MODEL_720P))
