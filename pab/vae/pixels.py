"""Pixels of a decoder as bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(pixels_NCHW: Tensor) -> Tensor:
    """Returns pixels of -1..1 as uint8 [N, H, W, 3], rounded to nearest; values beyond the range are cut."""
    return (pixels_NCHW.float().clamp(-1, 1) * 127.5 + 128).to(torch.uint8).permute(0, 2, 3, 1)
