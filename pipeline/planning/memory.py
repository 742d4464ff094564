"""Memory that one rank is expected to need, from the family's figures and the broadcast plan.

Open-Sora's was compared with a GPU's peak (`MemoryFigures.measured`); every other family's is an estimate.
"""

from __future__ import annotations

from jobs.settings import Mesh
from manifests.shards import ClipGroup
from pab.broadcast.plan import BroadcastPlan
from pab.family import Family

BYTES = {"float32": 4, "bfloat16": 2}
INT8_SCALE_BYTES = 4
"""Beside every token that is kept as 8-bit integers."""


def kept_at_once(plan: BroadcastPlan) -> int:
    """Returns the largest number of outputs of one pass that wait between two steps for a later one."""
    changes = [0] * (plan.num_steps + 1)
    for uses in plan.last_uses:
        for computed, last in uses.items():
            changes[computed] += 1
            changes[last] -= 1
    most = now = 0
    for change in changes:
        now += change
        most = max(most, now)
    return most


def kept_bytes(
    family: Family, group: ClipGroup, plan: BroadcastPlan, *, rows: int, sp: int, precision: str, keep: str
) -> float:
    """Returns what kept outputs hold at most on a rank that passes `rows` rows. Foresight may keep every block's output."""
    memory = family.cost.memory
    assert memory is not None, f"{family.name} has no memory figures"
    token_bytes = memory.width + INT8_SCALE_BYTES if keep == "int8" else memory.width * BYTES[precision]
    tokens = family.num_tokens(group.num_frames, group.height, group.width) / sp
    return kept_at_once(plan) * rows * tokens * token_bytes


def rank_bytes(
    family: Family,
    group: ClipGroup,
    plan: BroadcastPlan,
    mesh: Mesh,
    *,
    two_branches: bool,
    precision: str,
    keep: str,
) -> float | None:
    """Returns the most memory that a rank is expected to hold while it renders a clip; None if the family has no figures.

    Weights, and the larger of denoising (kept outputs and one pass) and decoding on top of them.
    """
    memory = family.cost.memory
    if memory is None:
        return None
    size = BYTES[precision]
    rows = 2 if two_branches and mesh.cfg == 1 else 1
    tokens = family.num_tokens(group.num_frames, group.height, group.width) / mesh.sp
    kept = kept_bytes(family, group, plan, rows=rows, sp=mesh.sp, precision=precision, keep=keep)
    one_pass = memory.widths_per_token * memory.width * size * rows * tokens
    decoding = memory.decode_bytes_per_pixel * group.height * group.width * size / BYTES["bfloat16"]
    return memory.parameters * size + max(kept + one_pass, decoding)
