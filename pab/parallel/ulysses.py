"""Ulysses attention (arXiv 2309.14509, section 3): ranks trade their parts of a sequence for parts of the heads, and back.

Both all-to-alls are made inside the call, so a reused attention makes none. Queries, keys and values go as one, and attention
reads them where they have come.

Shape letters: B rows, P this rank's tokens, S all ranks' tokens, H heads, h this rank's heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pab.parallel.mesh import SequenceParallel, pad_dim

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
    tokens_per_place: int = 1,
) -> Tensor:
    """Returns [B, P, H, D]: attention of this rank's tokens over the tokens of all ranks. Collective: two all-to-alls.

    `lengths`: true lengths of the streams (such as text and video) that follow one another in P, in places of
    `tokens_per_place` tokens. Each stream is split over the ranks separately; padding is not attended to. `mask` [B or 1, 1,
    S or 1, S], as torch takes it, over all tokens of the first stream, then of the next. `attend`: what does the attention,
    torch's own unless given. It must not depend on the order of tokens where there is no mask.
    """
    if attend is None:
        attend = torch_attention
    if sp.size == 1:
        return attend(q_BPHD, k_BPHD, v_BPHD, mask)
    streams = [[tokens_per_place * part for part in sp.parts(length)] for length in lengths]
    true = [tokens_per_place * length for length in lengths]
    places = [sum(of_rank) for of_rank in zip(*streams, strict=True)]
    num_heads = q_BPHD.shape[2]
    qkv_S3BhD = sp.all_to_all([x.transpose(0, 1) for x in (q_BPHD, k_BPHD, v_BPHD)], dim=2, places=places)
    # They come rank by rank. Where nothing tells tokens apart they may stay so.
    stays = sum(true) == sum(places) and (len(true) == 1 or mask is None)
    q, k, v = (qkv_S3BhD if stays else _by_stream(qkv_S3BhD, streams, true)).transpose(0, 2).unbind(1)
    out_SBhD = attend(q, k, v, mask).transpose(0, 1)
    heads = sp.parts(num_heads)[sp.axis.rank]
    assert out_SBhD.shape[2] == heads, "attention leaves the heads as they are"
    out_SBhD = out_SBhD if stays else _by_rank(out_SBhD, streams, true)
    return sp.all_to_all_back(out_SBhD, dim=2, size=num_heads, places=places, front=1)


def _by_stream(x: Tensor, streams: Sequence[Sequence[int]], true: Sequence[int]) -> Tensor:
    """Returns tokens in dim 0, which come rank by rank, stream by stream and without padding."""
    of_rank = [list(part) for part in zip(*streams, strict=True)]
    blocks = [rank.split(sizes) for rank, sizes in zip(x.split([sum(s) for s in of_rank]), of_rank, strict=True)]
    kept = [
        block.narrow(0, 0, own)
        for number, length in enumerate(true)
        for block, own in zip((rank[number] for rank in blocks), _own(streams[number], length), strict=True)
    ]
    return torch.cat(kept)


def _by_rank(x: Tensor, streams: Sequence[Sequence[int]], true: Sequence[int]) -> Tensor:
    """Undoes `_by_stream`, with zeros as padding."""
    by_stream = [
        [pad_dim(block, 0, part) for block, part in zip(stream.split(_own(parts, length)), parts, strict=True)]
        for stream, parts, length in zip(x.split(list(true)), streams, true, strict=True)
    ]
    return torch.cat([block for rank in zip(*by_stream, strict=True) for block in rank])


def _own(parts: Sequence[int], length: int) -> list[int]:
    """Returns of each rank's part how much is not padding."""
    starts = [sum(parts[:rank]) for rank in range(len(parts))]
    return [max(0, min(part, length - start)) for part, start in zip(parts, starts, strict=True)]


def torch_attention(q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask: Tensor | None) -> Tensor:
    """Returns [B, S, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BSHD, v_BSHD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
