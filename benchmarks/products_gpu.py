"""Times what may follow inside of a product beside the passes that it would save, at Open-Sora's 480p sizes.

And attention of 8-bit floats, in heads that are filled up for FlashAttention-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.kernels_gpu import DIM, FRAMES, HEAD_DIM, HEADS, PATCHES, ROWS, Operation, random
from pab.kernels import flash3, float8, linear_gelu, modulated_norm, product8, product_end
from pab.kernels.float8 import Float8Linear, Rows8
from pab.kernels.product_end import End

WIDE = 4 * DIM
FILLED = 96
"""What FlashAttention-3 fills heads of 72 up to; 8-bit floats must come filled up."""


def operations(*, tiles: bool) -> Iterator[Operation]:
    """Yields the operations; with `tiles`, every way to cut the products that is worth a try."""
    for name, inputs in (("fc2", WIDE), ("proj", DIM)):
        yield _sum_in_place(name, inputs)
    yield _widening_in_full()
    yield _widening(tiles=tiles)
    yield from _passes(tiles=tiles)
    if flash3.installed():
        yield _attention()


def _tokens(channels: int, seed: int) -> Tensor:
    return random(ROWS, FRAMES, PATCHES, channels, seed=seed)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    with torch.device("cuda"):
        return nn.Linear(inputs, outputs, dtype=torch.bfloat16)


def _sum_in_place(name: str, inputs: int) -> Operation:
    linear, gate = _linear(inputs, DIM), random(DIM, seed=30, scale=0.2)
    total, x = _tokens(DIM, 31), _tokens(inputs, 32)
    written = total.clone()
    return Operation(
        name=f"product of {name}, gated and added",
        arguments=(total, x),
        plain=lambda total, x: total + gate.to(x) * F.linear(x, linear.weight.to(x), linear.bias.to(x)),
        fused={},
        units=inputs / DIM + 2,
        others={
            "product alone": lambda _, x: linear(x),
            "gate in the weight": lambda _, x: product_end.ended(linear, x, End(gate)),
            "gate in the weight, added in place": lambda _, x: product_end.ended(linear, x, End(gate, written)),
        },
    )


def _widening_in_full() -> Operation:
    from pab.kernels.gpu import product8 as gpu

    linear = _linear(DIM, WIDE)
    x, ones = _tokens(DIM, 49), torch.ones(ROWS * FRAMES * PATCHES, 1, device="cuda")
    as_it_is = torch.tensor([0.0, 1.0], device="cuda")
    cuts = [
        gpu.Tile(outputs=256, inputs=64, per_processor=1, num_warps=8),
        gpu.Tile(inputs=64, num_stages=2),
        gpu.Tile(inputs=64, per_processor=1, num_stages=4),
    ]
    return Operation(
        name="first product of the MLP in full precision, by Triton",
        arguments=(x,),
        plain=lambda x: linear_gelu.plain(x, linear.weight.to(x), linear.bias.to(x)),
        fused={"vendor's": lambda x: linear_gelu.fused(x, linear.weight, linear.bias)}
        | {
            str(cut): lambda x, cut=cut: gpu.gelu(
                Rows8(x, ones, ones), Rows8(linear.weight, ones[:WIDE]), linear.bias, as_it_is, cut
            )[0]
            for cut in cuts
        },
        units=5,
        others={"vendor's, without GELU": linear},
        compiles=False,
    )


def _widening(*, tiles: bool) -> Operation:
    """Of the plain way and of every tile, time, and how far the tiles are from the twin (`checked`)."""
    from pab.kernels.gpu import product8 as gpu

    linear = Float8Linear(_linear(DIM, WIDE))
    rows = float8.rows(_tokens(DIM, 33))
    cut = gpu.Tile
    cuts = [gpu.GELU_TILE]
    if tiles:
        cuts += [
            cut(group=16),
            cut(inputs=64, num_stages=4),
            cut(outputs=256, per_processor=1, num_warps=8),
            cut(outputs=256, per_processor=1, num_warps=8, num_stages=4),
            cut(per_processor=1000),
            cut(outputs=256, per_processor=1000, num_warps=8),
        ]
    weight = Rows8(linear.weight, linear.weight_scales)

    def plain(values: Tensor, scales: Tensor, norms: Tensor, bias: Tensor) -> Tensor:
        """Where the bias is float32, what is not rounded."""
        last = Rows8(*(each.flatten(0, -2)[-4096:] for each in (values, scales, norms)))
        if bias.dtype == torch.float32:
            return F.gelu(float8.plain_linear(last, weight, bias, bias.dtype), approximate="tanh")
        return _wide(product8.plain_gelu(last, weight, bias, linear.reach), 4096)

    return Operation(
        name="8-bit product of fc1 with GELU and rounding",
        arguments=(*rows, linear.bias),
        plain=plain,
        fused={
            str(each): lambda values, scales, norms, bias, each=each: _wide(
                Rows8(*gpu.gelu(Rows8(values, scales, norms), weight, bias, linear.reach, each)), 4096
            )
            for each in cuts
        },
        units=2.5,
        others={
            "product, then GELU": lambda values, scales, *_: float8.gelu_rows(linear(Rows8(values, scales))),
            "product alone": lambda values, scales, *_: linear(Rows8(values, scales)),
        }
        | {
            f"alone, {each}": lambda values, scales, norms, bias, each=each: gpu.gelu(
                Rows8(values, scales, norms), weight, bias, linear.reach, each
            )
            for each in cuts
        },
        compiles=False,
    )


def _passes(*, tiles: bool) -> Iterator[Operation]:
    """Yields the passes that write 8-bit rows, in other tiles than today's, and a norm that writes a sum ahead."""
    from pab.kernels.gpu import float8 as gpu
    from pab.kernels.gpu import modulated_norm as gpu_norm

    x, branch, wide = _tokens(DIM, 36), _tokens(DIM, 37), _tokens(WIDE, 38)
    shift, scale = (random(1, 1, 1, DIM, seed=seed, scale=0.2) for seed in (39, 40))
    eps = modulated_norm.EPS
    cuts = [(1, 1), (1, 2), (2, 1)] if tiles else [None]
    wide_cuts = [(1, 2), (1, 4), (1, 8)] if tiles else [None]
    ways: list[tuple[str, float, Callable[[tuple[int, int] | None], object]]] = [
        ("rows", 1.5, lambda cut: gpu.rows(x, gelu=False, tile=cut)),
        ("rows of GELU", 6, lambda cut: gpu.rows(wide, gelu=True, tile=cut)),
        ("rows of a norm", 1.5, lambda cut: gpu_norm.launch_rows(x, (), shift, scale, eps=eps, tile=cut)),
        ("rows of a norm of 1 sum", 3.5, lambda cut: gpu_norm.launch_rows(x, (branch,), shift, scale, eps=eps, tile=cut)),
        ("rows of a gated sum", 3.5, lambda cut: gpu.gated_sum(x, branch, scale, keeps=False, tile=cut)),
        ("rows of a sum", 3.5, lambda cut: gpu.gated_sum(x, branch, None, keeps=False, tile=cut)),
        ("norm", 2, lambda cut: gpu_norm.launch(x, (), shift, scale, eps=eps, tile=cut)),
        ("norm with a sum ahead", 3, lambda cut: gpu_norm.launch(x, (), shift, scale, shift.flatten(), eps=eps, tile=cut)),
        ("norm of 1 sum", 4, lambda cut: gpu_norm.launch(x, (branch,), shift, scale, eps=eps, tile=cut)),
    ]  # fmt: skip
    for name, units, run in ways:
        yield Operation(
            name=f"tiles of {name}",
            arguments=(x,),
            plain=lambda x: x.clone(),
            fused={},
            units=units,
            others={
                f"tokens, warps {cut or 'of the width'}": lambda _, run=run, cut=cut: run(cut)
                for cut in (wide_cuts if units == 6 else cuts)
            },
            compiles=False,
        )


def _attention() -> Operation:
    filled = (random(ROWS * FRAMES, PATCHES, HEADS, FILLED, seed=seed) for seed in (43, 44, 45))
    q8, k8, v8 = (x.to(float8.FLOAT8) for x in filled)
    ones = torch.ones(ROWS * FRAMES, HEADS, device="cuda")
    heads = [random(ROWS * FRAMES, PATCHES, HEADS, HEAD_DIM, seed=seed) for seed in (46, 47, 48)]
    return Operation(
        name="spatial attention of 8-bit floats, filled up to 96",
        arguments=tuple(heads),
        plain=flash3.fused,
        fused={},
        units=4,
        others={
            "of 8-bit floats alone": lambda *_: flash3.call(q8, k8, v8, None, (ones, ones, ones)),
            "filling up and rounding, compiled": torch.compile(
                lambda *heads: [F.pad(x, (0, FILLED - HEAD_DIM)).to(float8.FLOAT8) for x in heads]
            ),
        },
        compiles=False,
    )


def _wide(rows: Rows8, count: int) -> Tensor:
    """Returns the first `count` rows as numbers: to compare, and to add little time."""
    values, scales = (each.flatten(0, -2)[-count:] for each in rows[:2])
    return values.float() * scales
