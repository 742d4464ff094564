"""HunyuanVideo (arXiv 2412.03603), text or image to video, and SkyReels V1, made from it, through the diffusers library.

No broadcast ranges are published for them: they are those of the nearest model of arXiv 2408.12588, CogVideoX, whose
attention is joint as well. The window is what lies between the first and the last 15 % of the steps, as that paper found;
what they do to these models' videos has not been measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, pyramid
from pab.conditioning.references import first_image_rules
from pab.families.hunyuan_video.config import (
    FIGURES,
    HUNYUAN_VIDEO_I2V_33CH_MODEL,
    HUNYUAN_VIDEO_I2V_MODEL,
    HUNYUAN_VIDEO_MODEL,
    MAX_LONG_SIDE,
    MAX_SHORT_SIDE,
    MAX_TEXT_TOKENS,
    SHIFT,
    SKYREELS_V1_MODEL,
    HunyuanModel,
    hunyuan_video_latent_frames,
    hunyuan_video_timesteps,
)
from pab.families.hunyuan_video.loras import HUNYUAN_VIDEO_LORAS
from pab.families.hunyuan_video.sites import hunyuan_video_sites
from pab.family import ClipDefaults, ClipLimits, Family, LoadRequest
from pab.library.even_levels import NUM_TRAIN_TIMESTEPS

if TYPE_CHECKING:
    from pab.model import VideoModel

WINDOW = (550, 975)


def hunyuan_video_family(model: HunyuanModel) -> Family:
    """Returns the family of one published model."""

    def load(request: LoadRequest) -> VideoModel:
        from pab.families.hunyuan_video.load import load_hunyuan_video

        transformer, root = model.weights.find(request.weights)
        return load_hunyuan_video(transformer, root, request, model)

    def write_tiny(folder: Path, seed: int) -> None:
        from pab.families.hunyuan_video.tiny import write_small_hunyuan_video

        write_small_hunyuan_video(folder, seed, model)

    return Family(
        name=model.name,
        summary=model.summary,
        defaults=ClipDefaults(
            num_frames=model.num_frames,
            height=model.height,
            width=model.width,
            fps=24,
            num_steps=50,
            guidance_scale=model.guidance_scale,
            broadcast="pab2",
        ),
        limits=ClipLimits(
            num_frames=range(5, model.max_frames + 1, 4),
            height=range(16, MAX_LONG_SIDE + 1, 16),
            width=range(16, MAX_LONG_SIDE + 1, 16),
            fps=range(1, 61),
            num_steps=range(1, NUM_TRAIN_TIMESTEPS + 1),
            guidance_scale=(1.0, 30.0),
            max_tokens=model.num_tokens(model.max_frames, MAX_SHORT_SIDE, MAX_LONG_SIDE),
            max_prompt_chars=4000,
            images=model.image is None,
        ),
        sites=hunyuan_video_sites(model.num_layers, model.num_single_layers),
        presets={
            "none": NO_BROADCAST,
            "pab2": pyramid(2, None, None, window=WINDOW),
            "pab3": pyramid(3, None, None, window=WINDOW),
            **FORESIGHT_PRESETS,
        },
        timesteps=hunyuan_video_timesteps,
        num_tokens=model.num_tokens,
        cost=model.cost,
        figures=FIGURES.get(model.name, ()),
        load=load,
        compiles=True,
        fused_kernels=True,
        fast_decode=True,
        decoder_compile_s=63.0,
        float8=True,
        float8_attention=True,
        keeps_blocks=True,
        loras=HUNYUAN_VIDEO_LORAS,
        flow_shift=lambda _height, _width: SHIFT,
        write_tiny=write_tiny,
        references=None if model.image is None else first_image_rules(hunyuan_video_latent_frames, required=True),
        weights_digest=model.weights.digest,
        text_tokens=MAX_TEXT_TOKENS,
        pin=model.weights.pin,
        embedded_guidance=model.told_guidance is None,
    )


HUNYUAN_VIDEO, SKYREELS_V1 = (hunyuan_video_family(model) for model in (HUNYUAN_VIDEO_MODEL, SKYREELS_V1_MODEL))
HUNYUAN_VIDEO_I2V, HUNYUAN_VIDEO_I2V_33CH = (
    hunyuan_video_family(model) for model in (HUNYUAN_VIDEO_I2V_MODEL, HUNYUAN_VIDEO_I2V_33CH_MODEL)
)
