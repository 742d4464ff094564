"""Measures what runs models of the diffusers library fast: attention, norms, 8-bit floats, decoders. Weights are random.

A line of JSON for each part: milliseconds or seconds, and how far the numbers are off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels_gpu import time_ms
from benchmarks.library_decoders import DECODERS, decoding
from benchmarks.open_sora_decoder import compiled as open_sora_compiled
from benchmarks.open_sora_decoder import fast as open_sora_fast
from jobs.bench.library_subjects import LIBRARY_SUBJECTS
from jobs.bench.measure import OurClips
from pab.execution.choice import execution_of
from pab.execution.compiled import executing, run_as
from pab.family import ClipRequest
from pab.kernels import flash3, flash3_float8, float8, product8, rotated_norm
from pab.parallel.mesh import NodeGroup

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TOKENS, HEADS, HEAD_DIM = (32760, 40, 128) if GPU else (64, 2, 16)
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ImportError)
"""What a part may end with; the others are measured all the same."""


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
    cos, sin = torch.randn(2, 1, TOKENS, 1, HEAD_DIM, device=DEVICE)
    bound = rotated_norm.norm_bound(weight)
    plain = partial(rotated_norm.plain, x, weight, (cos, sin), heads=HEADS, eps=1e-6)
    fused = partial(rotated_norm.fused, x, weight, (cos, sin), heads=HEADS, eps=1e-6)
    return {
        "compiled_ms": milliseconds(torch.compile(plain)) if GPU else None,
        "fused_ms": milliseconds(fused),
        "fused_float8_ms": milliseconds(partial(fused, bound=bound)),
        "off": round(off(fused(), plain()), 6),
    }


WIDTHS = (1152, 1536, 3072, 5120, 8960, 12288, 13824, 15360)
"""Of tokens that published models round to 8-bit floats: blocks, and inside of MLPs."""
WARPS = (1, 2, 4, 8, 16)


def rows() -> dict[str, Any]:
    """Rounding tokens of each width to 8-bit floats, with and without GELU, by the warps that share a token."""
    from pab.kernels.gpu import float8 as gpu
    from pab.kernels.gpu.widths import warps_of

    found: dict[str, Any] = {}
    for width in WIDTHS if GPU else (64,):
        x = torch.randn(1, TOKENS, width, device=DEVICE).bfloat16()
        for gelu in (False, True):
            # One call of each first: it compiles.
            told = {
                warps: milliseconds(partial(gpu.rows, x, gelu=gelu, tile=(1, warps))) if GPU else None
                for warps in WARPS
            }
            found[f"{width} gelu" if gelu else f"{width}"] = {"chosen": warps_of(width), **told}
    return found


def norm_warps() -> dict[str, Any]:
    """Norm over all heads and rotation, to 16 bits and to 8, by the warps that share a token."""
    from pab.kernels.gpu import rotated_norm as gpu

    found: dict[str, Any] = {}
    for width in (1536, 5120) if GPU else ():
        heads = width // HEAD_DIM
        x = torch.randn(1, TOKENS, width, device=DEVICE).bfloat16()
        weight = (torch.rand(width, device=DEVICE) + 0.5).bfloat16()
        cos, sin = torch.randn(2, 1, TOKENS, 1, HEAD_DIM, device=DEVICE)
        for name, bound in (("", None), (" float8", rotated_norm.norm_bound(weight))):
            launch = partial(gpu.launch, x, weight, cos, sin, heads=heads, eps=1e-6, bound=bound)
            found[f"{width}{name}"] = {warps: milliseconds(partial(launch, warps=warps)) for warps in WARPS[1:]}
    return found


def _gelu_after(layer: float8.Float8Linear, tokens: float8.Rows8) -> float8.Rows8:
    return float8.gelu_rows(layer(tokens))


def products() -> dict[str, Any]:
    """Matrix products of a block of Wan 14B at 480p, in bfloat16 and of 8-bit floats with scales per row."""
    width, inner = (HEADS * HEAD_DIM, 13824) if GPU else (HEADS * HEAD_DIM, 64)
    found: dict[str, Any] = {}
    for name, inputs, outputs in (("square", width, width), ("mlp_up", width, inner), ("mlp_down", inner, width)):
        x = torch.randn(1, TOKENS, inputs, device=DEVICE).bfloat16()
        linear = torch.nn.Linear(inputs, outputs, device=DEVICE, dtype=torch.bfloat16)
        eight = float8.Float8Linear(linear)
        # The product alone: its tokens are 8-bit already, as they come from the pass that writes them.
        rows = float8.rows(x) if GPU else float8.plain_rows(x)
        found[f"{name}_ms"] = milliseconds(partial(linear, x))
        found[f"{name}_float8_ms"] = milliseconds(partial(eight, rows))
        found[f"{name}_off"] = round(off(eight(rows), linear(x)), 4)
    return found


MLPS = {"wan": (1536, 8960), "ltx": (2048, 8192), "hunyuan_video": (3072, 12288), "wan_14b": (5120, 13824)}
"""Widths of blocks, and inside of their MLPs."""


def widening() -> dict[str, Any]:
    """The first product of MLPs of 8-bit floats, with GELU and rounding in a pass after it, and inside of a product."""
    found: dict[str, Any] = {}
    for name, (width, inner) in MLPS.items() if GPU else (("tiny", (32, 64)),):
        x = torch.randn(1, TOKENS, width, device=DEVICE).bfloat16()
        linear = torch.nn.Linear(width, inner, device=DEVICE, dtype=torch.bfloat16)
        eight, rows = float8.Float8Linear(linear), float8.rows(x)
        exact = torch.nn.functional.gelu(linear(x).float(), approximate="tanh")
        found[f"{name} product alone"] = milliseconds(partial(eight, rows))
        for way, run in (("after", _gelu_after), ("inside", product8.gelu_rows)):
            values, scales, _ = run(eight, rows)
            found[f"{name} {way}"] = milliseconds(partial(run, eight, rows))
            found[f"{name} {way} off"] = round(off(values.float() * scales, exact), 4)
    return found


def block(*, eight: bool = False) -> dict[str, Any]:
    """One block of Wan 14B, compiled: what four blocks more than one add to a step, of each of its two passes.

    `eight`: with products and attention of 8-bit floats.
    """
    full = LIBRARY_SUBJECTS["wan_14b"]
    step_ms: list[float] = []
    for num_layers in (1, 5):
        torch._dynamo.reset()
        described = replace(
            full, full={**full.full, "num_layers": num_layers}, tiny={**full.tiny, "num_layers": num_layers}
        )
        subject = described.make("full" if GPU else "tiny", DEVICE)
        execution = execution_of(
            subject.family, compiled=GPU, attention="float8" if eight else "auto", device=DEVICE.type,
            precision=subject.precision, linears="float8" if eight else "full",
        )  # fmt: skip
        run_as(subject.model, execution)
        clips = OurClips(subject=subject, broadcast="none", group=NodeGroup(device=DEVICE))
        with executing(execution):
            # The first steps compile.
            seconds = clips.denoise(replace(subject.requests[0], num_steps=6)).step_seconds
        step_ms.append(1e3 * statistics.median(seconds[2:]))
    return {"one_block_step_ms": round(step_ms[0], 3), "block_ms": round((step_ms[1] - step_ms[0]) / 8, 3)}


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
    "norm by warps": norm_warps,
    "rows by warps": rows,
    **{f"decoding {name}": partial(decoding, name) for name in DECODERS},
    "decoding open_sora": open_sora_fast,
    "decoding open_sora compiled": open_sora_compiled,
    "8-bit wan": partial(eight_bit, "wan"),
    "8-bit hunyuan_video": partial(eight_bit, "hunyuan_video"),
    "products": products,
    "widening": widening,
    "block": block,
    "block of 8-bit floats": partial(block, eight=True),
}


Part = Callable[[], dict[str, Any]]


def parts_of(asked: Sequence[str], parts: Mapping[str, Part] = PARTS) -> list[str]:
    """Returns the parts that words name: "decoding" is all of "decoding wan", "decoding ltx", ... Raises ValueError."""
    named = {word: [name for name in parts if name == word or name.startswith(f"{word} ")] for word in asked}
    if unknown := [word for word, names in named.items() if not names]:
        raise ValueError(f"part {unknown[0]!r} is not known, allowed: {', '.join(parts)}; or the first word of some")
    return [name for names in named.values() for name in names] or list(parts)


def measured(part: Part, profile: Path | None = None) -> dict[str, Any]:
    """Returns what a part finds; where it ends with an error, the error. `profile`: a file for its operations by time."""
    torch._dynamo.reset()
    try:
        with torch.inference_mode():
            if profile is None:
                return part()
            with torch.profiler.profile() as watched:
                found = part()
            by = "self_device_time_total" if GPU else "self_cpu_time_total"
            table = watched.key_averages().table(sort_by=by, row_limit=60, max_name_column_width=120)
            profile.write_text(table)
            return {**found, "profile": str(profile)}
    except FAILURES as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main(arguments: Sequence[str] | None = None, parts: Mapping[str, Part] = PARTS) -> int:
    """Measures the parts that are asked for, or all. Returns 1 if one ended with an error, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)} (default: all)")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="write each part's operations by time into DIR too")
    options = parser.parse_args(arguments)
    try:
        names = parts_of(options.parts, parts)
    except ValueError as error:
        parser.error(str(error))
    if options.profile:
        options.profile.mkdir(parents=True, exist_ok=True)
    device, failed = torch.cuda.get_device_name() if GPU else "cpu", False
    for name in names:
        began = time.perf_counter()
        found = measured(parts[name], options.profile and options.profile / f"{name.replace(' ', '_')}.txt")
        failed = failed or "error" in found
        line = {"part": name, "device": device, **found, "took_s": round(time.perf_counter() - began, 1)}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        if GPU:
            torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
