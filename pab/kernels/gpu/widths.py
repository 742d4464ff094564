"""How a width that is no power of two is cut for Triton, whose tiles are powers of two."""

from __future__ import annotations

import triton

VALUES_OF_THREAD = 48
"""At most so many values of a row are held by a thread: of many more it keeps some in the device's memory."""
MOST_WARPS = 8
"""Of 15,360 channels a thread then holds 64; twice as many warps were slower (docs/performance.md)."""


def two_parts(width: int) -> tuple[int, int]:
    """Returns two powers of two that hold a width, 1024 and 128 for 1152; the second is idle where the first holds all."""
    whole = triton.next_power_of_2(width)
    if whole == width:
        return whole, 16
    return whole // 2, max(16, triton.next_power_of_2(width - whole // 2))


def warps_of(width: int) -> int:
    """Returns the warps of a program that holds a row: as few as have room for it, and at most 8."""
    warps: int = triton.next_power_of_2(triton.cdiv(sum(two_parts(width)), 32 * VALUES_OF_THREAD))
    return min(MOST_WARPS, warps)


def head_parts(head_dim: int) -> tuple[int, int]:
    """Returns two powers of two that hold a head, 64 and 16 for 72; each is at least 16, the least that a product takes."""
    return two_parts(max(16, head_dim))
