"""Families of the diffusers library, two layers deep, beside the library's own pipelines over the same weights."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from pab.families.cogvideox.config import (
    COGVIDEOX_2B_MODEL,
    COGVIDEOX_5B_I2V_MODEL,
    COGVIDEOX_5B_MODEL,
    CogVideoXModel,
)
from pab.families.cogvideox.family import cogvideox_family
from pab.families.cogvideox.tiny import write_small_cogvideox
from pab.families.hunyuan_video.config import (
    HUNYUAN_VIDEO_I2V_33CH_MODEL,
    HUNYUAN_VIDEO_I2V_MODEL,
    HUNYUAN_VIDEO_MODEL,
    SKYREELS_V1_MODEL,
)
from pab.families.hunyuan_video_15.config import MODEL_480P
from pab.families.ltx.config import LTX_2B_MODEL, LTX_MODEL
from pab.families.ltx2.config import LTX2_MODEL
from pab.family import ClipRequest
from tests.pab.hunyuan_worlds import hunyuan_15_world, hunyuan_world
from tests.pab.library_world import LibraryWorld, displayed, plain_pipeline
from tests.pab.ltx_worlds import ltx2_world, ltx_world
from tests.pab.wan_worlds import WAN_WORLDS


def cogvideox_frames(vae: Any, latents: Tensor, request: ClipRequest) -> Tensor:
    return displayed(vae.decode(latents / vae.config.scaling_factor).sample)


def cogvideox_world(model: CogVideoXModel) -> LibraryWorld:
    name = "CogVideoXImageToVideoPipeline" if model.from_image else "CogVideoXPipeline"
    return LibraryWorld(
        family=cogvideox_family(model),
        write=lambda folder: write_small_cogvideox(folder, 0, model),
        frames=9,
        side=32,
        pipeline=partial(plain_pipeline, name=name),
        library_frames=cogvideox_frames,
        pack=lambda latents: latents.transpose(1, 2),
        unpack=lambda latents, _like: latents.transpose(1, 2),
        image=model.from_image,
        tolerance=1e-5,
    )


SMALL_HUNYUAN_15 = replace(MODEL_480P, num_layers=2, max_text_tokens=60, max_glyph_tokens=20)


WORLDS: Mapping[str, LibraryWorld] = {
    **WAN_WORLDS,
    "cogvideox_2b": cogvideox_world(replace(COGVIDEOX_2B_MODEL, num_layers=2)),
    "cogvideox_5b": cogvideox_world(replace(COGVIDEOX_5B_MODEL, num_layers=2)),
    "cogvideox_5b_i2v": cogvideox_world(
        replace(COGVIDEOX_5B_I2V_MODEL, num_layers=2, num_frames=9, height=32, width=32)
    ),
    "ltx": ltx_world(replace(LTX_MODEL, num_layers=2)),
    "ltx_2b": ltx_world(replace(LTX_2B_MODEL, num_layers=2)),
    "ltx2": ltx2_world(replace(LTX2_MODEL, num_layers=2, max_text_tokens=16)),
    "hunyuan_video": hunyuan_world(replace(HUNYUAN_VIDEO_MODEL, num_layers=2, num_single_layers=2)),
    **{
        model.name: hunyuan_world(replace(model, num_layers=2, num_single_layers=2))
        for model in (HUNYUAN_VIDEO_I2V_MODEL, HUNYUAN_VIDEO_I2V_33CH_MODEL)
    },
    "hunyuan_video_15_480p": hunyuan_15_world(SMALL_HUNYUAN_15),
    "skyreels_v1": hunyuan_world(replace(SKYREELS_V1_MODEL, num_layers=2, num_single_layers=2)),
}
