"""Pixels of a decoder as bytes: the one place where a NaN or an infinite value would become a colour, so it counts them.

The count of each image travels behind its bytes, so pieces that other ranks decoded bring their counts to the clip's root.
Nothing here waits for the device. Shape letters: B clips, C channels, T frames, N images, H, W, L bytes of an image and its
count.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_COUNT = torch.int32
_COUNT_BYTES = 4


def to_bytes(pixels_NCHW: Tensor) -> Tensor:
    """Returns pixels of -1..1 as uint8 [N, H, W, 3], rounded to nearest; values beyond the range are cut."""
    return (pixels_NCHW.float().clamp(-1, 1) * 127.5 + 128).to(torch.uint8).permute(0, 2, 3, 1)


def to_even_bytes(pixels_NCHW: Tensor) -> Tensor:
    """Returns what `to_bytes` does; a value midway between two bytes goes to the even one."""
    return ((pixels_NCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def not_finite(pixels_NCHW: Tensor) -> Tensor:
    """Returns, per image, how many of its values are NaN or infinite: int32 [N], on the pixels' device."""
    return (~pixels_NCHW.isfinite()).flatten(1).sum(dim=1, dtype=_COUNT)


def clip_bytes(
    pixels_BCTHW: Tensor, to_bytes: Callable[[Tensor], Tensor] = to_bytes
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns uint8 frames [B, T, H, W, 3] of decoded clips, and per clip how many values are NaN or infinite [B]."""
    clips = [clip.transpose(0, 1) for clip in pixels_BCTHW]
    return torch.stack([to_bytes(clip) for clip in clips]), torch.stack([not_finite(clip).sum() for clip in clips])


def pack(pixels_NCHW: Tensor) -> Tensor:
    """Returns uint8 [N, L]: each image's bytes, and behind them its count of values that are NaN or infinite."""
    counts = not_finite(pixels_NCHW).view(-1, 1).view(torch.uint8)
    return torch.cat([to_bytes(pixels_NCHW).flatten(1), counts], dim=1)


def packed_shape(num_images: int, height: int, width: int) -> tuple[int, int]:
    """Returns the shape of what `pack` returns."""
    return num_images, 3 * height * width + _COUNT_BYTES


def unpack(packed_NL: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Undoes `pack`: returns frames uint8 [N, H, W, 3], and each one's count [N]."""
    images, counts = packed_NL[:, :-_COUNT_BYTES], packed_NL[:, -_COUNT_BYTES:]
    return images.unflatten(1, (height, width, 3)), counts.contiguous().view(_COUNT)[:, 0]
