"""Which denoising loops are recorded by themselves: those that a host queues more slowly than a device runs. No torch."""

from __future__ import annotations

from pab.broadcast.foresight import ForesightRules
from pab.broadcast.rules import Rules
from pab.family import ClipRequest, Family

MAX_ROW_TOKENS = 32768
"""Latent tokens of all rows of guidance in a rank's pass, up to which recording gains (docs/performance.md): on H100s a loop
of 25,440 in 8-bit floats takes three quarters of its time recorded, one of 47,700 takes 3 % longer."""
ROWS = 2
"""Of guidance, on a rank that has both."""


def row_tokens(family: Family, request: ClipRequest, *, clips: int = 1, cfg: int = 1, sp: int = 1) -> int:
    """Returns the latent tokens that a rank works on at once, of both rows of guidance where it has both.

    `clips`: of the batch. `cfg`, `sp`: the sizes of the mesh's axes; the rank that has most of a split clip has a few more.
    """
    rows = 1 if cfg > 1 or request.guidance_scale == 1.0 else ROWS
    return clips * rows * family.num_tokens(request.num_frames, request.height, request.width) // sp


def can_be_recorded(rules: Rules) -> bool:
    """Whether a loop is known before its first step: what Foresight computes is not."""
    return not isinstance(rules, ForesightRules)


def gains_by_recording(
    family: Family, request: ClipRequest, rules: Rules, *, clips: int = 1, cfg: int = 1, sp: int = 1
) -> bool:
    """Whether a clip's loop can be recorded and is small enough to gain by it, as `row_tokens` has its arguments."""
    return can_be_recorded(rules) and row_tokens(family, request, clips=clips, cfg=cfg, sp=sp) <= MAX_ROW_TOKENS
