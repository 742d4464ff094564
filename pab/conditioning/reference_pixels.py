"""Brings the frames of references to a clip's size as the published Open-Sora pipeline does: filled, the middle kept.

An image is scaled bicubically, all its pixels weighed in, a video's frames bilinearly between the nearest pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

MAX_SIDES = 16
"""How much longer than the other one side of a picture may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePixels:
    """Some frames of one reference at the clip's size: float32 [1, 3, T, H, W] in -1..1.

    `start`: which of the reference's frames is the first here; it begins a chunk.
    """

    pixels_13THW: Tensor
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceImage:
    """One picture as its file has it, for a family that brings it to size itself: uint8 RGB [H, W, 3].

    Raises ValueError for one that is a strip: encoders scale the shorter side to a fixed size.
    """

    frame_HW3: Tensor

    def __post_init__(self) -> None:
        height, width = self.frame_HW3.shape[:2]
        if max(height, width) > MAX_SIDES * min(height, width):
            raise ValueError(
                f"it has {width} x {height} pixels; one side may be up to {MAX_SIDES} times as long as the other; cut it"
            )


def filled_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Returns the (height, width) to scale `size` to, so that it just fills `target`, of unchanged proportions."""
    (height, width), (to_height, to_width) = size, target
    if to_height / height > to_width / width:
        return to_height, round(width * (to_height / height))
    return round(height * (to_width / width)), to_width


def fit_frame(frame_HW3: Tensor, target: tuple[int, int], *, still: bool) -> Tensor:
    """Scales one uint8 RGB frame to fill `target` (height, width) and cuts its middle out.

    Returns float32 [3, H, W] in -1..1. `still`: the reference is an image.
    """
    frame_13HW = frame_HW3.permute(2, 0, 1)[None].contiguous()
    height, width = filled_size((frame_HW3.shape[0], frame_HW3.shape[1]), target)
    if still:
        # Stays in bytes, as image libraries scale: rounding is part of the published numbers.
        scaled = F.interpolate(frame_13HW, (height, width), mode="bicubic", antialias=True).float() / 255
    else:
        scaled = F.interpolate(frame_13HW.float() / 255, (height, width), mode="bilinear", align_corners=False)
    top, left = round((height - target[0]) / 2), round((width - target[1]) / 2)
    return scaled[0, :, top : top + target[0], left : left + target[1]] * 2 - 1
