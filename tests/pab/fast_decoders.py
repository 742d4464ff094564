"""Small decoders of the diffusers library with random weights, without a model around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pab.families.cogvideox.tiny import VAE as COGVIDEOX_VAE
from pab.families.cogvideox.vae import cogvideox_codec
from pab.families.hunyuan_video.tiny import VAE as HUNYUAN_VAE
from pab.families.hunyuan_video.vae import hunyuan_codec
from pab.families.hunyuan_video_15.tiny import VAE as HUNYUAN_15_VAE
from pab.families.hunyuan_video_15.vae import FrameMemory, go_by_frames, hunyuan_15_codec, sliced_decoder
from pab.families.ltx.load import ltx_codec
from pab.families.ltx.tiny import TIMESTEP_VAE as LTX_091_VAE
from pab.families.ltx.tiny import VAE as LTX_VAE
from pab.families.ltx.tiny import VAE_095 as LTX_095_VAE
from pab.families.ltx2.load import ltx2_codec
from pab.families.ltx2.tiny import VAE as LTX2_VAE
from pab.families.wan.tiny import PATCHED_VAE as WAN22_VAE
from pab.families.wan.tiny import VAE as WAN_VAE
from pab.families.wan.vae import wan_codec
from pab.library.parts import library_class
from pab.library.vae import TiledCodec
from pab.parallel.mesh import Axis, NodeGroup, open_group
from tests.pab.library_worlds import WORLDS

Config = Mapping[str, Any]
DECODERS: Mapping[str, tuple[Config, Callable[[Any, torch.dtype], TiledCodec], tuple[int, int, int]]] = {
    "wan": (WAN_VAE, wan_codec, (2, 2, 5)),
    "wan22_5b": (WAN22_VAE, wan_codec, (2, 5, 2)),
    "cogvideox": (COGVIDEOX_VAE, cogvideox_codec, (3, 2, 2)),
    "hunyuan_video": (HUNYUAN_VAE, hunyuan_codec, (2, 2, 3)),
    "hunyuan_video_15": (HUNYUAN_15_VAE, hunyuan_15_codec, (2, 1, 3)),
    "ltx": (LTX_VAE, ltx_codec, (2, 2, 2)),
    "ltx_091": (LTX_091_VAE, ltx_codec, (2, 2, 2)),
    "ltx_095": (LTX_095_VAE, ltx_codec, (2, 2, 2)),
    "ltx2": (LTX2_VAE, ltx2_codec, (2, 2, 2)),
}
"""By name: the configuration, what makes a codec of the VAE, and latent frames, height and width of a small clip."""
SLICED = ("wan", "wan22_5b", "hunyuan_video_15")
"""Those that are cut with no seams."""
CLIP = WORLDS["ltx"].clip()


def small_vae(name: str) -> Any:
    config, _, _ = DECODERS[name]
    torch.manual_seed(7)
    return (
        library_class(str(config["_class_name"])).from_config(dict(config)).eval().requires_grad_(requires_grad=False)
    )


def small_decoder(name: str) -> TiledCodec:
    """A codec, the same each time."""
    _, codec, _ = DECODERS[name]
    return codec(small_vae(name), torch.float32)


def cut_decoder(name: str) -> TiledCodec:
    """The same codec, which decodes in the pieces of a fast one, but in float32."""
    _, codec_of, _ = DECODERS[name]
    vae = small_vae(name)
    codec = codec_of(vae, torch.float32)
    codec.way.fast = True
    if name != "hunyuan_video_15":
        return codec
    memory = FrameMemory()
    go_by_frames(vae.decoder, memory)
    assert codec.fast is not None
    return replace(codec, fast=replace(codec.fast, slices=sliced_decoder(vae, memory)))


def latents_of(name: str, codec: TiledCodec) -> Tensor:
    _, _, size = DECODERS[name]
    return torch.randn(1, codec.channels, *size, generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def pixels(name: str, codec: TiledCodec, axis: Axis | None = None) -> Tensor | None:
    return codec.pixels(latents_of(name, codec), CLIP, axis or Axis())


def ranks_pixels(names: tuple[str, ...]) -> list[Tensor | None]:
    """What each decoder makes, in float32 but cut as it is when it is fast, on the ranks that there are."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    group = open_group(dp=1, cfg=1, sp=world, device=torch.device("cpu")) if world > 1 else NodeGroup()
    return [pixels(name, cut_decoder(name), group.clip) for name in names]
