"""A text encoder for tests: random states drawn by a text's letters."""

from collections.abc import Sequence

import torch

from pab.text.states import TextStates


def hashed_text(texts: Sequence[str], *, length: int, channels: int, ends: int = 0) -> TextStates:
    """`length` tokens of `channels` for each text; those count that are words, and `ends` behind them."""
    rows = []
    for text in texts:
        generator = torch.Generator().manual_seed(sum(text.encode()))
        rows.append(torch.randn(length, channels, generator=generator))
    lengths = torch.tensor([min(len(text.split()) + ends, length) for text in texts])
    mask = (torch.arange(length) < lengths[:, None]).long()
    return TextStates(y_BLC=torch.stack(rows), mask_BL=mask, warnings=((),) * len(rows))
