"""How a head whose size is no power of two is cut for Triton, whose tiles are powers of two."""

from __future__ import annotations

import triton


def head_parts(head_dim: int) -> tuple[int, int]:
    """Returns two powers of two that hold a head, 64 and 16 for 72; the second is idle where the first holds all.

    A part is at least 16 wide, the least that a matrix product takes.
    """
    whole = max(16, triton.next_power_of_2(head_dim))
    if whole in (head_dim, 16):
        return whole, 16
    return whole // 2, max(16, triton.next_power_of_2(head_dim - whole // 2))
