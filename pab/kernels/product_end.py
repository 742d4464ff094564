"""How the product that ends a branch of a block writes: as it is, behind a gate, or added to the tokens of the block.

A gate that all tokens share is put into the rows of the weight, so that it takes no pass over the tokens. A sum into tokens
is made by the product itself. Shape letters: K channels in, N channels out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.kernels import float8, product8

Product = nn.Linear | float8.Float8Linear
"""A linear layer in full precision, or of 8-bit floats."""


class End(NamedTuple):
    """What becomes of a branch's last product.

    `gate` [N]: what multiplies it, of all tokens alike; None: nothing does. `total` [..., N]: the tokens that it is added to.
    A product in full precision writes to them, and finds `ahead` in them already.
    """

    gate: Tensor | None = None
    total: Tensor | None = None


AS_IT_IS = End()


def ahead(product: Product, gate: Tensor) -> Tensor:
    """Returns the gated bias [N], which a product that adds to tokens cannot add as well."""
    assert product.bias is not None, "the branch's last product has a bias"
    return gate * product.bias


def ended(product: Product, x: Tensor | float8.Rows8, end: End) -> Tensor:
    """Returns the branch behind its gate, or the tokens with the branch added."""
    if end.gate is None:
        return product(x)
    if isinstance(product, float8.Float8Linear):
        if end.total is None:
            return product.gated(x, end.gate)
        return product8.added(product, end.total, x, end.gate)
    assert isinstance(x, Tensor), "8-bit rows go into 8-bit products"
    weight = product.weight * end.gate[:, None]
    if end.total is None:
        return F.linear(x, weight, ahead(product, end.gate))
    _add_product(end.total, x, weight)
    return end.total


@torch.library.custom_op("pab::add_product", mutates_args=("total",))
def _add_product(total: Tensor, x: Tensor, weight: Tensor) -> None:
    # Only in place does torch leave the sum to the product; else it copies `total` first.
    total.view(-1, total.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.t())


@_add_product.register_fake
def _(total: Tensor, x: Tensor, weight: Tensor) -> None:
    return None
