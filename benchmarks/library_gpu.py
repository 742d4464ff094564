"""Measures what runs models of the diffusers library fast: attention, norms, 8-bit floats, Wan's decoder. Weights are random.

A line of JSON for each part: milliseconds or seconds, and how far the numbers are off.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels_gpu import time_ms
from jobs.bench.library_subjects import LIBRARY_SUBJECTS, random_part
from jobs.bench.measure import OurClips
from pab.execution.choice import execution_of
from pab.execution.compiled import executing, run_as
from pab.families.wan.vae import wan_codec
from pab.family import ClipRequest
from pab.kernels import flash3, flash3_float8, rotated_norm
from pab.parallel.mesh import NodeGroup

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TOKENS, HEADS, HEAD_DIM = (32760, 40, 128) if GPU else (64, 2, 16)
LATENTS = (1, 16, 21, 60, 104) if GPU else (1, 16, 3, 8, 8)
"""Of 81 frames 480x832."""
PIXEL_STEPS = 255 / 2
"""Steps of a byte in a decoder's range of -1 to 1."""


def off(found: Tensor, exact: Tensor) -> float:
    """Returns the root mean square of the difference, of that of the exact numbers."""
    return float((found.float() - exact.float()).norm() / exact.float().norm())


def milliseconds(run: Callable[[], object]) -> float | None:
    """Returns the median milliseconds of a call on the GPU; None where there is none."""
    return round(time_ms(run), 3) if GPU else None


def attention() -> dict[str, Any]:
    """Self attention of Wan 14B at 480p on normal numbers, against FlashAttention-3 in bfloat16."""
    q, k, v = (torch.randn(1, TOKENS, HEADS, HEAD_DIM, device=DEVICE).bfloat16() for _ in range(3))
    bound = torch.tensor(40.0, device=DEVICE)
    q8, k8 = (rotated_norm.to_float8(x, bound) for x in (q, k))
    eight = partial(flash3_float8.fused, q8, k8, v, (bound, bound))
    exact = flash3.fused(q, k, v)
    return {
        "torch_ms": milliseconds(partial(flash3.plain, q, k, v)),
        "flash3_ms": milliseconds(partial(flash3.fused, q, k, v)),
        "float8_ms": milliseconds(eight),
        "float8_off": round(off(eight(), exact), 4),
    }


def norm() -> dict[str, Any]:
    """Norm over all heads and rotation of Wan 14B's queries, in one kernel and as torch compiles it."""
    x = torch.randn(1, TOKENS, HEADS * HEAD_DIM, device=DEVICE).bfloat16()
    weight = (torch.rand(HEADS * HEAD_DIM, device=DEVICE) + 0.5).bfloat16()
    rotation = tuple(torch.randn(1, TOKENS, 1, HEAD_DIM, device=DEVICE) for _ in range(2))
    bound = rotated_norm.norm_bound(weight)
    plain = partial(rotated_norm.plain, x, weight, rotation, heads=HEADS, eps=1e-6)
    fused = partial(rotated_norm.fused, x, weight, rotation, heads=HEADS, eps=1e-6)
    return {
        "compiled_ms": milliseconds(torch.compile(plain)) if GPU else None,
        "fused_ms": milliseconds(fused),
        "fused_float8_ms": milliseconds(partial(fused, bound=bound)),
        "off": round(off(fused(), plain()), 6),
    }


def decoding() -> dict[str, Any]:
    """81 frames 480x832 by Wan's decoder: in the published tiles, whole, and fast; pixels against whole in float32."""
    config = {"z_dim": 16, "base_dim": 96 if GPU else 8}
    request: Any = None  # Wan's decoder asks nothing of the clip
    latents = torch.randn(*LATENTS, device=DEVICE)

    def codec(*, tiles: bool) -> Any:
        vae: Any = random_part("AutoencoderKLWan", config, torch.float32, DEVICE)
        if tiles:
            vae.enable_tiling()
        return wan_codec(vae, torch.float32)

    def seconds(found: Any) -> tuple[float, Tensor]:
        pixels = found.pixels(latents, request, NodeGroup(device=DEVICE).clip)
        _wait()
        began = time.perf_counter()
        found.pixels(latents, request, NodeGroup(device=DEVICE).clip)
        _wait()
        return round(time.perf_counter() - began, 3), pixels.float().clamp(-1, 1).cpu()

    tiles_s, _ = seconds(codec(tiles=True))
    whole = codec(tiles=False)
    whole.way.whole = True
    whole_s, exact = seconds(whole)
    fast = codec(tiles=False)
    fast.use_fast()
    fast_s, pixels = seconds(fast)
    mean = float((pixels - exact).abs().mean()) * PIXEL_STEPS
    return {"tiles_s": tiles_s, "whole_s": whole_s, "fast_s": fast_s, "fast_off_of_255": round(mean, 3)}


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def eight_bit(name: str) -> dict[str, Any]:
    """Latents of 10 steps of two blocks at full width, with 8-bit products, attention and both, against neither."""
    full = LIBRARY_SUBJECTS[name]
    shallow = {**full.full, "num_layers": 2} | ({"num_single_layers": 4} if "num_single_layers" in full.full else {})
    described = replace(full, full=shallow, clip={**full.clip, "num_steps": 10, "num_frames": 17})

    def latents(linears: str, attention: str) -> Tensor:
        torch._dynamo.reset()
        subject = described.make("full" if GPU else "tiny", DEVICE)
        execution = execution_of(
            subject.family, compiled=GPU, attention=attention, device=DEVICE.type, precision=subject.precision,
            linears=linears,
        )  # fmt: skip
        run_as(subject.model, execution)
        clips = OurClips(subject=subject, broadcast="none", group=NodeGroup(device=DEVICE))
        clip: ClipRequest = subject.requests[0]
        with executing(execution):
            return clips.denoise(clip).latents

    exact = latents("full", "auto")
    return {
        f"{name} {word}": round(off(latents(*choice), exact), 4)
        for word, choice in {
            "products": ("float8", "auto"), "attention": ("full", "float8"), "both": ("float8", "float8"),
        }.items()
    }  # fmt: skip


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "attention": attention,
    "norm": norm,
    "decoding": decoding,
    "8-bit wan": partial(eight_bit, "wan"),
    "8-bit hunyuan_video": partial(eight_bit, "hunyuan_video"),
}


def main() -> None:
    """Measures the parts that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    asked = parser.parse_args().parts
    device = torch.cuda.get_device_name() if GPU else "cpu"
    for name in asked or PARTS:
        with torch.inference_mode():
            found = PARTS[name]()
        sys.stdout.write(json.dumps({"part": name, "device": device} | found) + "\n")
        sys.stdout.flush()
        if GPU:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
