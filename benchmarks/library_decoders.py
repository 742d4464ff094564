"""Times decoders of published sizes with random weights: in the published tiles, whole, and fast; and how far fast is off."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jobs.bench.library_subjects import random_part
from jobs.bench.subjects import request_of
from pab.execution.compiled import compile_blocks, many_graphs
from pab.families import FAMILIES
from pab.families.cogvideox.tiny import VAE as COGVIDEOX_VAE
from pab.families.cogvideox.vae import cogvideox_codec
from pab.families.hunyuan_video.tiny import VAE as HUNYUAN_VAE
from pab.families.hunyuan_video.vae import hunyuan_codec
from pab.families.hunyuan_video_15.tiny import VAE as HUNYUAN_15_VAE
from pab.families.hunyuan_video_15.vae import hunyuan_15_codec
from pab.families.ltx.load import ltx_codec
from pab.families.ltx.tiny import VAE as LTX_VAE
from pab.families.ltx2.load import ltx2_codec
from pab.families.ltx2.tiny import VAE as LTX2_VAE
from pab.families.wan.tiny import VAE as WAN_VAE
from pab.families.wan.vae import wan_codec
from pab.library.vae import TiledCodec
from pab.parallel.mesh import Axis

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
PIXEL_STEPS = 255 / 2
"""Steps of a byte in a decoder's range of -1 to 1."""
GB = 1e9
Size = tuple[int, int, int]
"""Latent frames, height and width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A published decoder. `size`: of the clip that is timed; `near`: of one that is compared, within a published tile.

    `published`: the precision that it runs in in a bfloat16 run.
    """

    family: str
    tiny: Mapping[str, Any]
    codec: Callable[[Any, torch.dtype], TiledCodec]
    size: Size
    near: Size
    published: torch.dtype = torch.bfloat16


DECODERS: Mapping[str, Decoder] = {
    "wan": Decoder(
        family="wan", tiny=WAN_VAE, codec=wan_codec, size=(21, 60, 104), near=(3, 24, 24), published=torch.float32
    ),
    "hunyuan_video": Decoder(
        family="hunyuan_video", tiny=HUNYUAN_VAE, codec=hunyuan_codec, size=(9, 68, 120), near=(3, 24, 24),
        published=torch.float32,
    ),
    "hunyuan_video_15": Decoder(
        family="hunyuan_video_15_480p", tiny=HUNYUAN_15_VAE, codec=hunyuan_15_codec, size=(31, 30, 53), near=(3, 12, 12)
    ),
    "cogvideox": Decoder(
        family="cogvideox_5b", tiny=COGVIDEOX_VAE, codec=cogvideox_codec, size=(13, 60, 90), near=(3, 24, 24)
    ),
    "ltx": Decoder(family="ltx", tiny=LTX_VAE, codec=ltx_codec, size=(21, 16, 22), near=(3, 12, 12)),
    "ltx2": Decoder(family="ltx2", tiny=LTX2_VAE, codec=ltx2_codec, size=(16, 16, 24), near=(3, 12, 12)),
}  # fmt: skip
"""81 frames 480x832 of Wan, 33 of 544x960 of HunyuanVideo, 121 of 480x848 of 1.5, 49 of 480x720 of CogVideoX, 161 of 512x704
of LTX-Video, 121 of 512x768 of LTX-2."""
TINY: Size = (2, 2, 3)


def _codec(name: str, dtype: torch.dtype) -> TiledCodec:
    decoder = DECODERS[name]
    config = {} if GPU else decoder.tiny
    vae: Any = random_part(str(decoder.tiny["_class_name"]), config, torch.float32, DEVICE)
    for key, buffer in vae.named_buffers():
        if key == "latents_std":
            buffer.fill_(1.0)
    # Cast afterwards: the weights are the same numbers in every precision.
    vae.to(dtype)
    return decoder.codec(vae, dtype)


def decoding(name: str) -> dict[str, Any]:
    """Seconds, gigabytes at the peak, and the mean difference of pixels from float32's; None is what does not fit."""
    decoder = DECODERS[name]
    request = request_of(FAMILIES[decoder.family])
    draw = torch.Generator().manual_seed(0)
    published = _codec(name, decoder.published)
    size, near = (decoder.size, decoder.near) if GPU else (TINY, TINY)
    latents, close = (torch.randn(1, published.channels, *each, generator=draw).to(DEVICE) for each in (size, near))

    def seconds(codec: TiledCodec) -> float:
        return timed(lambda: codec.pixels(latents, request, Axis()))

    def whole(codec: TiledCodec) -> float | None:
        try:
            return timed(lambda: codec.decode(0, codec.unscale(latents, request), request))
        except RuntimeError:  # out of memory, or too many values for an operation
            return None

    published.pixels(close, request, Axis())  # loads kernels
    found: dict[str, Any] = {"tiles_s": seconds(published), "whole_s": whole(published)}
    del published
    exact = _codec(name, torch.float32).pixels(close, request, Axis())
    fast = _codec(name, decoder.published)
    fast.use_fast()
    pixels = fast.pixels(close, request, Axis())
    assert exact is not None
    assert pixels is not None
    off = (pixels.float().clamp(-1, 1) - exact.clamp(-1, 1)).abs().mean() * PIXEL_STEPS
    seconds(fast)
    held = start_peak()
    found["fast_s"] = seconds(fast)
    found |= {"fast_gb": peak_gb(held), "fast_off_of_255": round(float(off), 3)}
    parts = fast.compiled_parts()
    if parts:
        compile_blocks([nn.ModuleList(parts)], backend="inductor" if GPU else "eager")
        with many_graphs():
            found["first_compiled_s"] = seconds(fast)
            held = start_peak()
            found["fast_compiled_s"] = seconds(fast)
            found["fast_compiled_gb"] = peak_gb(held)
    return found


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds of one call, the device's work with it."""
    _wait()
    began = time.perf_counter()
    run()
    _wait()
    return round(time.perf_counter() - began, 3)


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def start_peak() -> int:
    """Begins to watch memory; returns what is held already."""
    if not GPU:
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_gb(held: int) -> float | None:
    """Returns what was allocated at most beyond `held`, which is the weights."""
    return round((torch.cuda.max_memory_allocated() - held) / GB, 2) if GPU else None
