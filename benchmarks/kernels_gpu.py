"""Times every fused operation on a GPU beside its plain twin, and compares both with float32, at Open-Sora's 480p sizes.

A line per operation and tile; one that fails says so and the others go on.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pab.kernels import (
    attention,
    flash3,
    float8,
    head_norm,
    kept_int8,
    linear_gelu,
    modulated_norm,
    temporal_attention,
)

ROWS, FRAMES, PATCHES, HEADS, HEAD_DIM, TEXT = 2, 15, 1590, 16, 72, 120
DIM = HEADS * HEAD_DIM
UNIT_BYTES = ROWS * FRAMES * PATCHES * DIM * 2
"""One reading or writing of all tokens in bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`fused` in several tiles, `plain` with the same arguments (bfloat16 and float32), tokens' traffic in units."""

    name: str
    arguments: tuple[object, ...]
    plain: Callable[..., object]
    fused: Mapping[str, Callable[..., object]]
    units: float
    others: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    """Timed only."""
    compiles: bool = True
    """Whether the twin is timed compiled too."""


def random(*size: int, seed: int, scale: float = 1.0) -> Tensor:
    """Returns bfloat16 normal numbers on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return (torch.randn(*size, generator=generator, device="cuda") * scale).bfloat16()


def time_ms(run: Callable[[], object]) -> float:
    """Returns the median milliseconds of twelve calls, by device events, after three others."""
    for _ in range(3):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(12 + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


def operations(*, tiles: bool) -> Iterator[Operation]:
    """Yields the operations; with `tiles`, every way to cut the work that is worth a try."""
    from pab.kernels.gpu import attention as gpu_attention
    from pab.kernels.gpu import head_norm as gpu_head_norm
    from pab.kernels.gpu import modulated_norm as gpu_norm
    from pab.kernels.gpu import temporal_attention as gpu_temporal

    weights = (random(HEAD_DIM, seed=1, scale=0.2) + 1, random(HEAD_DIM, seed=2, scale=0.2) + 1)
    angles = torch.rand(FRAMES, HEAD_DIM // 2, device="cuda").repeat_interleave(2, dim=-1)
    rotation = (angles.cos(), angles.sin())
    qkv = random(ROWS, FRAMES, PATCHES, 3 * DIM, seed=3)
    fewer = [(1, 1, 192), (1, 1, 168), (1, 1, 128), (1, 1, 96), (1, 2, 128), (1, 2, None), (2, 2, None), (2, 1, None)]
    yield Operation(
        name="temporal attention",
        arguments=(qkv, HEADS, weights, rotation),
        plain=temporal_attention.plain,
        fused={"default": temporal_attention.fused}
        | {f"patches, warps, registers {cut}": partial(_temporal, gpu_temporal.launch, cut) for cut in fewer if tiles},
        units=4,
        # With cuDNN first its graph ends in an illegal memory access (torch 2.11), which takes the process along.
        compiles=False,
    )
    x, first, second = (random(ROWS, FRAMES, PATCHES, DIM, seed=seed) for seed in (4, 5, 6))
    shift, scale = (random(ROWS, 1, 1, DIM, seed=seed, scale=0.2) for seed in (7, 8))
    cuts = [(1, 2), (1, 4), (1, 8), (2, 4), (4, 4), (4, 8)] if tiles else []
    for addends, units in (((), 2), ((first,), 4), ((first, second), 5)):
        yield Operation(
            name=f"modulated norm of {len(addends)} sums",
            arguments=(x, addends, shift, scale),
            plain=modulated_norm.plain,
            fused={"default": modulated_norm.fused}
            | {f"tokens, warps {cut}": partial(_norm, gpu_norm.launch, cut) for cut in cuts if units == 5},
            units=units,
        )
    q = random(ROWS, FRAMES * PATCHES, DIM, seed=9)
    tile = gpu_attention.Tile
    cross_tiles = [tile(queries=q_, keys=k, num_warps=w, num_stages=s) for q_, k, w, s in (
        (128, 64, 4, 2), (64, 64, 4, 2), (128, 64, 8, 2), (128, 128, 8, 1), (64, 128, 4, 1), (64, 32, 4, 2),
    )] if tiles else []  # fmt: skip
    for masked in (False, True):
        keys_values = random(ROWS, 300 if masked else TEXT, 2, HEADS, HEAD_DIM, seed=10).permute(0, 2, 3, 1, 4)
        mask = None
        if masked:
            lengths = torch.tensor([TEXT, 300], device="cuda")
            mask = (torch.arange(300, device="cuda") < lengths[:, None])[:, None, None]
        yield Operation(
            name="cross attention, text of 120 and 300" if masked else "cross attention, text of 120",
            arguments=(q, keys_values, mask),
            plain=attention.plain_cross,
            fused={"default": attention.fused_cross}
            | {str(cut): partial(_cross, gpu_attention.launch, cut) for cut in cross_tiles if not masked},
            units=2,
        )
    flat = qkv.flatten(0, 1)
    cuts = [(32, 2), (32, 4), (64, 2), (128, 4), (128, 8), (16, 1)] if tiles else []
    yield Operation(
        name="query and key norm",
        arguments=(flat, HEADS, weights),
        plain=head_norm.plain,
        fused={"default": head_norm.fused}
        | {f"heads, warps {cut}": partial(_head_norm, gpu_head_norm.launch, cut) for cut in cuts},
        units=4,
    )
    weight, bias = random(4 * DIM, DIM, seed=11, scale=DIM**-0.5), random(4 * DIM, seed=12)
    yield Operation(
        name="linear and GELU",
        arguments=(x, weight, bias),
        plain=linear_gelu.plain,
        fused={"default": linear_gelu.fused},
        units=5,
        others={"without GELU": torch.nn.functional.linear},
    )
    yield from _of_float8(x, first, shift, scale)
    q, k, v = flat.unflatten(-1, (3, HEADS, -1)).unbind(2)
    yield Operation(
        name="spatial attention of normed heads",
        arguments=(q, k, v),
        plain=flash3.plain,
        fused={"FlashAttention-3": flash3.fused} if flash3.installed() else {},
        units=4,
        others={"cuDNN": partial(_torch_self, SDPBackend.CUDNN_ATTENTION)},
    )
    packed = kept_int8.plain_pack(x)
    yield Operation(
        name="kept as int8",
        arguments=(x,),
        plain=lambda x: x * 1,
        fused={},
        units=1.5,
        others={"pack": kept_int8.fused_pack, "unpack": lambda _: kept_int8.fused_unpack(packed)},
    )
    wide = random(ROWS, FRAMES, PATCHES, 4 * DIM, seed=13)
    for name, given, outputs in (("qkv", x, 3 * DIM), ("fc2", wide, DIM), ("proj", x, DIM)):
        yield Operation(
            name=f"product of {name}",
            arguments=(given, random(outputs, given.shape[-1], seed=14, scale=given.shape[-1] ** -0.5)),
            plain=torch.nn.functional.linear,
            fused={},
            units=(given.shape[-1] + outputs) / DIM,
            others={
                "float8 with row scales, quantised before": _Float8(given, outputs),
                "torch's copy of all tokens": lambda x, _: x.clone(),
            },
        )


def _of_float8(x: Tensor, branch: Tensor, shift: Tensor, scale: Tensor) -> Iterator[Operation]:
    """Yields the passes that write 8-bit rows; that they round as their twins do is the tests' to say."""
    wide = random(ROWS, FRAMES, PATCHES, 4 * DIM, seed=16)
    passes: list[tuple[str, tuple[object, ...], Callable[..., object], Callable[..., object], float]] = [
        ("8-bit rows", (x,), float8.plain_rows, float8.rows, 1.5),
        ("8-bit rows of GELU", (wide,), float8.plain_gelu_rows, float8.gelu_rows, 6),
        ("8-bit rows of a modulated norm", (x, (), shift, scale), float8.plain_norm_rows, float8.norm_rows, 1.5),
        ("8-bit rows of a norm of 1 sum", (x, (branch,), shift, scale), float8.plain_norm_rows, float8.norm_rows, 3.5),
        (
            "8-bit rows of a gated sum", (x, branch, scale), float8.plain_gated_sum,
            partial(float8.gated_sum, keeps=False), 3.5,
        ),
    ]  # fmt: skip
    for name, arguments, plain, fused, units in passes:
        yield Operation(name=name, arguments=arguments, plain=plain, fused={}, units=units, others={"fused": fused})


class _Float8:
    """torch's row-wise scaled product of tensors that are quantised already."""

    def __init__(self, given: Tensor, outputs: int) -> None:
        rows = given.flatten(0, -2)
        self.a = rows.to(torch.float8_e4m3fn)
        self.b = random(outputs, rows.shape[1], seed=15).to(torch.float8_e4m3fn)
        self.scales = [torch.ones(size, 1, device="cuda") for size in (len(self.a), outputs)]

    def __call__(self, *_: object) -> Tensor:
        return torch._scaled_mm(
            self.a, self.b.t(), scale_a=self.scales[0], scale_b=self.scales[1].t(), out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )  # fmt: skip


def _temporal(launch: Callable[..., Tensor], cut: object, *arguments: object) -> Tensor:
    return launch(*arguments, 1e-6, tile=cut)


def _head_norm(launch: Callable[..., Tensor], cut: object, *arguments: object) -> tuple[Tensor, ...]:
    return launch(*arguments, 1e-6, tile=cut).unbind(0)


def _norm(launch: Callable[..., tuple[Tensor, ...]], cut: object, *arguments: object) -> tuple[Tensor, ...]:
    return launch(*arguments, eps=1e-6, tile=cut)


def _cross(launch: Callable[..., Tensor], cut: object, q: Tensor, keys_values: Tensor, _: object) -> Tensor:
    k, v = keys_values.transpose(2, 3).unbind(1)
    return launch(q.unflatten(-1, (HEADS, -1)), k, v, tile=cut)


def _torch_self(backend: SDPBackend, *heads: Tensor) -> Tensor:
    with sdpa_kernel([backend]):
        return flash3.plain(*heads)


def _widened(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(_widened(each) for each in argument)
    if isinstance(argument, Tensor) and argument.dtype == torch.bfloat16:
        return argument.float()
    return argument


def _distance(result: object, exact: object) -> float:
    """Returns the largest difference, of all outputs."""
    results, exacts = (
        cast("tuple[Tensor, ...]", each if isinstance(each, tuple) else (each,)) for each in (result, exact)
    )
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(results, exacts, strict=True))


def measure(operation: Operation) -> Iterator[dict[str, object]]:
    """Yields a line for the twin and for every way to run the operation.

    `right`: the error against float32 is at most twice the twin's (whose own error is bfloat16's rounding), and finite.
    """
    given = operation.arguments
    exact = operation.plain(*map(_widened, given)) if operation.fused else None
    own = None if exact is None else _distance(operation.plain(*given), exact)
    floor = operation.units * UNIT_BYTES / 4.3e12 * 1e3
    line: dict[str, object] = {"operation": operation.name, "traffic_ms": round(floor, 3)}
    yield line | {"way": "plain", "ms": time_ms(lambda: operation.plain(*given)), "error": own}
    if operation.compiles:
        compiled = torch.compile(operation.plain, dynamic=False)
        yield line | _tried("plain, compiled", lambda: {"ms": time_ms(lambda: compiled(*given))})
    for way, run in operation.fused.items():

        def checked(run: Callable[..., object] = run) -> dict[str, object]:
            error = _distance(run(*given), exact)
            assert own is not None, "a twin has an error"
            return {"error": error, "right": error <= 2 * own, "ms": time_ms(lambda: run(*given))}

        yield line | _tried(f"fused, {way}", checked)
    for way, run in operation.others.items():
        yield line | _tried(way, partial(_timed, run, given))


def _timed(run: Callable[..., object], given: Sequence[object]) -> dict[str, object]:
    return {"ms": time_ms(lambda: run(*given))}


def _tried(way: str, run: Callable[[], dict[str, object]]) -> dict[str, object]:
    try:
        return {"way": way, **run()}
    except Exception as error:  # one kernel that fails must not lose the others
        return {"way": way, "failed": f"{type(error).__name__}: {error}"[:400]}
