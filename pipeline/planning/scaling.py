"""What a clip takes on the ranks of one or more nodes, from what it takes on one: a model of time.

Computing is shared as evenly as its tokens can be. Each exchange takes what its bytes take over the link, and what copying
them takes. Where that is less than what the host needs to queue the steps, a clip takes as long as the host, unless its loop
is recorded. The figures are fitted to measured rows, the assumptions stand in docs/performance.md. Free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.settings import Mesh
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import KINDS
from pab.family import ClipRequest, CostFigures, Family
from pab.parallel.parts import even_parts, largest_part, sent_elements
from pab.sampling.recorded_sizes import ROWS

_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How fast a GPU sends to the others: `bytes_per_s` of it, and the seconds of an exchange of nothing."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What exchanges run over. `copy_bytes_per_s`: of a copy into another order, read and written bytes together.

    `rows_apart`: how many times as long as half of a clip's time one row of guidance takes, its predictions exchanged, of a
    family that has both rows in one pass; `passes_apart`: of one that has a pass for each. `site_s`: what the kernels of one
    computed site take on a rank that shares a clip beyond their part of one rank's: fewer tokens fill a GPU less well.
    `host_site_s`: what the host needs to queue one site that is computed, of a pass that ranks share: however little is left
    to each, a clip takes that long.
    """

    within_node: Link
    between_nodes: Link
    copy_bytes_per_s: float
    rows_apart: float
    passes_apart: float
    site_s: float
    host_site_s: float


H100 = Machine(
    within_node=Link(bytes_per_s=160e9, latency_s=30e-6),
    between_nodes=Link(bytes_per_s=40e9, latency_s=50e-6),
    copy_bytes_per_s=2.4e12,
    rows_apart=1.015,
    passes_apart=1.01,
    site_s=15e-6,
    host_site_s=0.55e-3,
)
"""Of one node fitted to two H100s (Open-Sora 1.2, none, cfg2 and sp2), passes to two H200s (Wan 2.1 1.3B, cfg2), sites and
rows apart to all rows of two and four cards (docs/performance.md); the host to four H200s (Open-Sora 1.2); between nodes
assumed: 400 Gb/s for each GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """What an exchange does besides sending: passes over what it sends and gets, there and back. `pads`: to equal parts."""

    there: int
    back: int
    pads: bool = False


PACKED = Copies(there=1, back=1)
BEFORE = Copies(there=3, back=3, pads=True)
"""How exchanges were until November 2026, when the two-card rows were measured: stacked, cut, joined, cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What of a clip is exchanged: `places` are split over the ranks, `others` are what they are traded for.

    Frames for patches, or tokens for heads. `width`: values of a place and one other. `there`: tensors that go there, of
    which one comes back. `share`: of the time of a clip, the part that is split by `others`. `rows_per_pass`: 2 where one
    pass has both rows of guidance.
    """

    places: int
    others: int
    width: int
    there: int
    value_bytes: int
    share: float
    rows_per_pass: int = ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Seconds of denoising a clip, and what the busiest rank sends. `exchange_s` is part of what the device takes.

    `host_s`: what the host takes at least. `seconds`: the larger of it and `device_s`, of a recorded loop `device_s`.
    """

    mesh: Mesh
    nodes: int
    seconds: float
    exchange_s: float
    sent_bytes: float
    times_faster: float
    device_s: float
    host_s: float = 0.0


def tokens_of(
    family: Family, request: ClipRequest, plan: BroadcastPlan, figures: CostFigures, *, heads: int | None = None
) -> Tokens | None:
    """Returns what a clip of a family exchanges. None where its width is not known.

    `heads`: of its attention, which are split evenly where they are not told.
    """
    if figures.memory is None or not plan.all_to_alls_without_broadcast:
        return None
    size = request.num_frames, request.height, request.width
    tokens, width, value_bytes = family.num_tokens(*size), figures.memory.width, _BYTES[figures.precision]
    kinds = figures.kind_s(tokens, family.seen_tokens(*size))
    whole_s = figures.step_s(tokens, family.seen_tokens(*size))
    spent = {kind: kinds[kind] * plan.computed(kind) / plan.total(kind) for kind in kinds if plan.total(kind)}
    rest_s = whole_s - sum(kinds[kind] for kind in spent)
    if family.latent_frames is None:
        # All tokens see all: attention alone is split by heads, and is no more uneven than they are.
        heads = width if heads is None else heads
        return Tokens(
            places=tokens, others=heads, width=width // heads, there=3, value_bytes=value_bytes, share=0.0,
            rows_per_pass=figures.memory.rows_per_pass,
        )  # fmt: skip
    frames = family.latent_frames(request.num_frames)
    share = spent.get("temporal", 0.0) / (sum(spent.values()) + rest_s)
    return Tokens(
        places=frames, others=tokens // frames, width=width, there=1, value_bytes=value_bytes, share=share,
        rows_per_pass=figures.memory.rows_per_pass,
    )  # fmt: skip


def exchanged(tokens: Tokens, sp: int, rows: int, copies: Copies) -> tuple[float, float]:
    """Returns of one exchange there and back the bytes that the busiest rank sends, and those that its copies move."""
    places, others = even_parts(tokens.places, sp), even_parts(tokens.others, sp)
    if copies.pads:
        places, others = (places[0],) * sp, (others[0],) * sp
    rest = rows * tokens.width * tokens.value_bytes
    there = sent_elements(places, others, 0, rest * tokens.there)
    back = sent_elements(others, places, 0, rest)
    here = rest * places[0] * sum(others)
    # A copy reads and writes.
    return there + back, 2.0 * here * (tokens.there * copies.there + copies.back)


def _wire_s(sent: float, machine: Machine, sp: int, *, nodes_of_pass: int) -> float:
    """Returns the seconds in which a rank's bytes are sent there and back; what goes to other nodes goes at the same time."""
    near = sp // nodes_of_pass - 1
    within, between = machine.within_node, machine.between_nodes
    within_s = sent * near / (sp - 1) / within.bytes_per_s
    if nodes_of_pass == 1:
        return within_s + 2 * within.latency_s
    return max(within_s, sent * (sp - 1 - near) / (sp - 1) / between.bytes_per_s) + 2 * between.latency_s


def expected(
    one_rank_s: float, plan: BroadcastPlan, tokens: Tokens, mesh: Mesh, *, machine: Machine = H100,
    copies: Copies = PACKED, nodes: int = 1, recorded: bool = False,
) -> Expected:  # fmt: skip
    """Returns what a clip that takes `one_rank_s` on one rank takes on a mesh's cfg x sp ranks, over so many nodes.

    Branches of guidance are on different nodes before a pass is. `recorded`: the host queues a step at once, so that it is no
    limit. Rows of guidance in turn are not expected: the host is their limit on a GPU.
    """
    cfg, sp = mesh.cfg, mesh.sp
    rows = min(tokens.rows_per_pass, ROWS // cfg)
    passes = ROWS // cfg // rows
    share = (1 - tokens.share) * largest_part(tokens.places, sp) / tokens.places
    share += tokens.share * largest_part(tokens.others, sp) / tokens.others
    apart = machine.rows_apart if tokens.rows_per_pass > 1 else machine.passes_apart
    sites = passes * sum(plan.computed(kind) for kind in KINDS)
    compute_s = one_rank_s / cfg * (apart if cfg > 1 else 1.0) * share
    compute_s += sites * machine.site_s if cfg * sp > 1 else 0.0
    if sp == 1:
        return Expected(
            mesh=mesh, nodes=nodes, seconds=compute_s, exchange_s=0.0, sent_bytes=0.0,
            times_faster=one_rank_s / compute_s, device_s=compute_s,
        )  # fmt: skip
    switches = passes * plan.all_to_alls // 2
    sent, copied = exchanged(tokens, sp, rows, copies)
    wire_s = _wire_s(sent, machine, sp, nodes_of_pass=max(1, nodes // cfg))
    exchange_s = switches * (wire_s + copied / machine.copy_bytes_per_s)
    host_s = sites * machine.host_site_s
    device_s = compute_s + exchange_s
    seconds = device_s if recorded else max(device_s, host_s)
    return Expected(
        mesh=mesh,
        nodes=nodes,
        seconds=seconds,
        exchange_s=exchange_s,
        sent_bytes=switches * sent,
        times_faster=one_rank_s / seconds,
        device_s=device_s,
        host_s=host_s,
    )
