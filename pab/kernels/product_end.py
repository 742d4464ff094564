"""How the product that ends a branch of a block writes: as it is, behind a gate, or added to the tokens of the block.

A gate that all tokens share is put into the rows of the weight, so that it takes no pass over the tokens. A sum into tokens
is made by the product itself. Shape letters: K channels in, N channels out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from pab.kernels import float8
from pab.kernels.operator import operator, shapes_of

Product = nn.Linear | float8.Float8Linear
"""A linear layer in full precision, or of 8-bit floats."""


class End(NamedTuple):
    """What becomes of a branch's last product.

    `gate` [N]: what multiplies it, of all tokens alike; None: nothing does. `total` [..., N], with a gate and in full
    precision: the tokens that it is added to. The product writes to them, and finds `ahead` in them already.
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
    gate, total = end
    if gate is None:
        return product(x)
    if isinstance(product, float8.Float8Linear):
        assert total is None, "8-bit products are not added to tokens"
        return product.gated(x, gate)
    assert isinstance(x, Tensor), "8-bit rows go into 8-bit products"
    weight = product.weight * gate[:, None]
    if total is None:
        return F.linear(x, weight, ahead(product, gate))
    _add_product(total, x, weight)
    return total


@operator("add_product", mutates=("total",))
def _add_product(total: Tensor, x: Tensor, weight: Tensor) -> None:
    # Only in place does torch leave the sum to the product; else it copies `total` first.
    total.view(-1, total.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.t())


@shapes_of(_add_product)
def _(total: Tensor, x: Tensor, weight: Tensor) -> None:
    return None
