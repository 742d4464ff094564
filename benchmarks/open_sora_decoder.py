"""Times Open-Sora's decoder: as published, laid out for speed, and published with compiled parts.

51 frames 480x848 in the job's precision, random weights. Pixels are compared with float32's on a clip of 17 frames 96x160.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.kernels_gpu import time_ms
from benchmarks.library_decoders import DEVICE, GPU, peak_gb, start_peak, timed
from jobs.bench.subjects import request_of
from pab.execution.compiled import compile_blocks, many_graphs
from pab.families.open_sora.family import OPEN_SORA
from pab.families.open_sora.fast_vae import use_fast
from pab.families.open_sora.load import OpenSoraCodec
from pab.families.open_sora.temporal_vae import TemporalResBlock
from pab.families.open_sora.tiny import VAE as TINY_VAE
from pab.families.open_sora.vae import OpenSoraVAE, OpenSoraVAEConfig
from pab.family import ClipRequest
from pab.parallel.mesh import Axis, NodeGroup
from pab.vae.image_vae import ImageAttention, ResnetBlock, Upsampler

OTHER_FRAMES = (1, 3, 4, 9)
"""Decoded at once, beside those that are."""
MOMENTS: Mapping[str, Mapping[str, int]] = {
    f"{elements} by {warps} warps": {"elements": elements, "warps": warps}
    for elements, warps in ((4096, 4), (4096, 8), (2048, 4), (2048, 8), (1024, 4))
}
"""Values that a program of the moments' kernel has at once."""
LINES_OF_PROFILE = 24
REPEAT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A decoder, the clip that is timed, and the small one whose pixels are compared."""

    vae: OpenSoraVAE
    clip: ClipRequest
    near: ClipRequest
    latents: Tensor
    near_latents: Tensor
    exact: Tensor

    def decode(self, vae: OpenSoraVAE) -> None:
        """Decodes the clip, as jobs do."""
        OpenSoraCodec(vae=vae).decode_frames(self.latents, self.clip, NodeGroup(device=DEVICE))

    def off(self, vae: OpenSoraVAE) -> float:
        """Returns the mean difference of pixels from those of float32, of 255."""
        shown = OpenSoraCodec(vae=vae).decode_frames(self.near_latents, self.near, NodeGroup(device=DEVICE))
        return round(float((shown.frames.float() - self.exact).abs().mean()), 3)

    def measured(self, vae: OpenSoraVAE, name: str) -> dict[str, Any]:
        """Returns the seconds of the first call and of later ones, the memory beside the weights, and how far it is off."""
        first = timed(partial(self.decode, vae))
        held = start_peak()
        seconds = median(timed(partial(self.decode, vae)) for _ in range(REPEAT))
        return {
            f"{name}_first_s": first, f"{name}_s": seconds, f"{name}_gb": peak_gb(held),
            f"{name}_off_of_255": self.off(vae),
        }  # fmt: skip


def open_world() -> World:
    """Returns the decoder with random weights, in the precision of jobs; a tiny one on a CPU."""
    torch.manual_seed(0)
    with DEVICE:
        vae = OpenSoraVAE(OpenSoraVAEConfig() if GPU else TINY_VAE).to(torch.bfloat16 if GPU else torch.float32).eval()
    frames, height, width = (51, 480, 848) if GPU else (17, 16, 24)
    clip = request_of(OPEN_SORA, num_frames=frames, height=height, width=width)
    near = request_of(OPEN_SORA, num_frames=17, height=min(height, 96), width=min(width, 160))
    latents, close = (
        torch.randn(1, *vae.latent_shape(each.num_frames, each.height, each.width), device=DEVICE)
        for each in (clip, near)
    )
    whole = OpenSoraCodec(vae=copy.deepcopy(vae).float())
    exact = whole.decode_frames(close, near, NodeGroup(device=DEVICE)).frames.float()
    return World(vae=vae, clip=clip, near=near, latents=latents, near_latents=close, exact=exact)


def fast() -> dict[str, Any]:
    """The decoder as published and laid out for speed; where the time goes; other sizes of its pieces."""
    world = open_world()
    found = world.measured(world.vae, "eager")
    vae = copy.deepcopy(world.vae)
    use_fast(vae)
    found |= world.measured(vae, "fast")
    in_time = partial(vae.image_latents, world.latents, world.clip.num_frames, Axis())
    found["fast_in_time_s"] = median(timed(in_time) for _ in range(REPEAT))
    if GPU:
        found["profile"] = profile(partial(world.decode, vae))
    if GPU:
        found["moments_ms"] = moments_ms()
    for frames in OTHER_FRAMES:
        vae = copy.deepcopy(world.vae)
        use_fast(vae, frames_at_once=frames)
        timed(partial(world.decode, vae))
        found[f"{frames} at once_s"] = median(timed(partial(world.decode, vae)) for _ in range(REPEAT))
    return found


def moments_ms() -> dict[str, tuple[float, ...]]:
    """Returns the milliseconds of the moments of the largest tensor, alone and of a residual sum, by the program's size."""
    from pab.kernels.gpu import group_norm

    x, y = (
        torch.randn(2, 128, 480, 848, device=DEVICE).bfloat16().contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    return {
        name: tuple(
            round(time_ms(partial(group_norm.moments, x, other, groups=32, clips=2, shift=None, **size)), 3)
            for other in (None, y)
        )
        for name, size in MOMENTS.items()
    }


def compiled() -> dict[str, Any]:
    """The published decoder with its residual blocks, its attention and what doubles sizes as compiled graphs."""
    world = open_world()
    kinds = ResnetBlock, ImageAttention, Upsampler, TemporalResBlock
    decoders = world.vae.spatial_vae.module.decoder, world.vae.temporal_vae.decoder
    parts = [part for decoder in decoders for part in decoder.modules() if isinstance(part, kinds)]
    compile_blocks([nn.ModuleList(parts)], backend="inductor" if GPU else "eager")
    with many_graphs():
        return world.measured(world.vae, "compiled")


def profile(run: Callable[[], object]) -> list[str]:
    """Returns the operations that take most of the device's time: milliseconds, calls, name, and sizes of tensors."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as prof:
        run()
        torch.cuda.synchronize()
    lines: list[tuple[float, str]] = []
    for by_size in (False, True):
        for event in prof.key_averages(group_by_input_shape=by_size):
            # Kernels by their own names, then convolutions and products by their tensors' sizes.
            if by_size == event.device_type.name.startswith("CUDA"):
                continue
            ms = event.self_device_time_total / 1e3
            sizes = f" {event.input_shapes[:2]}" if by_size else ""
            lines.append((ms, f"{ms:.2f} ms, {event.count} x {event.key[:90]}{sizes}"))
    return [line for _, line in sorted(lines, reverse=True)[:LINES_OF_PROFILE]]
