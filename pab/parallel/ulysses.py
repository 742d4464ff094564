"""Ulysses attention (arXiv 2309.14509, section 3): ranks trade their parts of a sequence for parts of the heads, and back.

Both all-to-alls are made inside the call, so a reused attention makes none.

Shape letters: B rows, P this rank's tokens, S all ranks' tokens, H heads, h this rank's heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pab.parallel.mesh import SequenceParallel, pad_dim, padded

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def ulysses_attention(
    q_BPHD: Tensor,
    k_BPHD: Tensor,
    v_BPHD: Tensor,
    *,
    lengths: Sequence[int],
    sp: SequenceParallel,
    mask: Tensor | None = None,
    attend: Attend | None = None,
) -> Tensor:
    """Returns [B, P, H, D]: attention of this rank's tokens over the tokens of all ranks. Collective: two all-to-alls.

    `lengths`: true lengths of the streams (such as text and video) that follow one another in P. Each stream is split
    over the ranks separately; padding is not attended to. `mask` [B or 1, 1, S or 1, S], as torch takes it, over all tokens
    of the first stream, then of the next. `attend`: what does the attention, torch's own unless given. If the number of ranks
    does not divide that of heads, empty heads are added.
    """
    if attend is None:
        attend = torch_attention
    if sp.size == 1:
        return attend(q_BPHD, k_BPHD, v_BPHD, mask)
    parts = [padded(length, sp.size) // sp.size for length in lengths]
    num_heads = q_BPHD.shape[2]
    assert q_BPHD.shape[1] == sum(parts), f"{q_BPHD.shape[1]} tokens here, streams of {lengths} give {parts}"
    traded = torch.stack([q_BPHD, k_BPHD, v_BPHD])
    traded = sp.all_to_all(traded, whole_dim=2, split_dim=3, size=sp.size * sum(parts))
    by_stream = traded.unflatten(2, (sp.size, -1)).split(parts, dim=3)
    whole = [stream.flatten(2, 3).narrow(2, 0, length) for stream, length in zip(by_stream, lengths, strict=True)]
    q, k, v = torch.cat(whole, dim=2).unbind(0)
    out_BShD = attend(q, k, v, mask)
    dealt = [
        pad_dim(stream, 1, sp.size * part).unflatten(1, (sp.size, part))
        for stream, part in zip(out_BShD.split(list(lengths), dim=1), parts, strict=True)
    ]
    return sp.all_to_all(torch.cat(dealt, dim=2).flatten(1, 2), whole_dim=2, split_dim=1, size=num_heads)


def torch_attention(q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask: Tensor | None) -> Tensor:
    """Returns [B, S, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BSHD, v_BSHD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
