"""Memory that one rank is expected to need, from the family's figures and the broadcast plan.

A few families' were compared with a GPU's peak (`MemoryFigures.measured`); every other family's is an estimate.
"""

from __future__ import annotations

from dataclasses import replace

from jobs.settings import Mesh
from manifests.shards import ClipGroup
from pab.broadcast.plan import BroadcastPlan
from pab.family import Family, MemoryFigures

BYTES = {"float32": 4, "bfloat16": 2}
INT8_SCALE_BYTES = 4
"""Beside every token that is kept as 8-bit integers."""
GB = 1e9
RESERVED_BYTES = 1.5 * GB
"""Of a device, for CUDA's own use and for gaps between tensors; what is computed here has to fit into the rest."""


def kept_at_once(plan: BroadcastPlan) -> int:
    """Returns the largest number of outputs of sites, and residuals of all blocks, of one pass that wait for a later step."""
    return plan.kept_at_once


def kept_bytes(
    family: Family,
    memory: MemoryFigures,
    group: ClipGroup,
    plan: BroadcastPlan,
    *,
    rows: int,
    sp: int,
    precision: str,
    keep: str,
) -> float:
    """Returns what kept outputs of `rows` guidance branches hold at most on a rank; Foresight's are not known."""
    token_bytes = memory.width + INT8_SCALE_BYTES if keep == "int8" else memory.width * BYTES[precision]
    tokens = family.num_tokens(group.num_frames, group.height, group.width) / sp
    return kept_at_once(plan) * rows * tokens * token_bytes


def in_float8(memory: MemoryFigures, precision: str) -> MemoryFigures:
    """Returns the figures where products are of 8-bit floats: with as many parameters of the precision as take its bytes."""
    saved = memory.float8_parameters * (BYTES[precision] - 1) / BYTES[precision]
    return replace(memory, parameters=memory.parameters - saved)


def rank_bytes(
    family: Family,
    memory: MemoryFigures | None,
    group: ClipGroup,
    plan: BroadcastPlan,
    mesh: Mesh,
    *,
    two_branches: bool,
    precision: str,
    keep: str,
) -> float | None:
    """Returns the most memory that a rank is expected to hold while it renders a clip; None if there are no figures.

    Weights, and the larger of denoising (kept outputs of all its branches, and one pass) and decoding on top of them.
    """
    if memory is None:
        return None
    size = BYTES[precision]
    rows = 2 if two_branches and mesh.cfg == 1 else 1
    tokens = family.num_tokens(group.num_frames, group.height, group.width) / mesh.sp
    kept = kept_bytes(family, memory, group, plan, rows=rows, sp=mesh.sp, precision=precision, keep=keep)
    one_pass = memory.widths_per_token * memory.width * size * min(rows, memory.rows_per_pass) * tokens
    decoding = memory.decode_bytes_per_pixel * group.height * group.width * size / BYTES["bfloat16"]
    return memory.parameters * size + max(kept + one_pass, decoding)
