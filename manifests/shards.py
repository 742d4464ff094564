"""Planning accepted rows into shards: equal family and size, balanced by cost, each within the minutes of a job."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.ahead import read_ahead
from manifests.distinct import distinct_rows
from manifests.unique import KeySet

COST_COLUMNS = ("model", "height", "width", "num_frames", "num_steps", "broadcast", "guidance_scale")
SAMPLING_COLUMNS = ("sampling", "flow_shift")
PLAN_COLUMNS = ("clip_id", "digest", *COST_COLUMNS, "loops", *SAMPLING_COLUMNS, "lora")
"""The columns of an accepted manifest that planning reads: `loops` since version 3, and the last three may be missing."""

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ShardGroup:
    """What the clips of one shard have in common: one loaded model and one shape of latents. Sizes in pixels.

    `lora`: the LoRAs that the rows name (`Clip.lora`); empty for those of the run.
    """

    model: str
    height: int
    width: int
    num_frames: int
    lora: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ClipGroup:
    """Clips that cost the same. `guided` is false where guidance_scale is 1, which needs no unconditional branch.

    `sampling`, `flow_shift`: empty and 0 where clips are sampled as published. `lora`: as of `ShardGroup`.
    """

    model: str
    height: int
    width: int
    num_frames: int
    num_steps: int
    broadcast: str
    guided: bool
    loops: int = 1
    sampling: str = ""
    flow_shift: float = 0.0
    lora: str = ""

    @property
    def shard_group(self) -> ShardGroup:
        """The group whose shards these clips may share."""
        return ShardGroup(
            model=self.model, height=self.height, width=self.width, num_frames=self.num_frames, lora=self.lora
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One job's clips. `seconds` estimates the job: loading the family and rendering every clip.

    `over_bound` marks a single clip that does not fit into the minutes of a job.
    """

    index: int
    group: ShardGroup
    num_clips: int
    seconds: float
    over_bound: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardPlan:
    """Which row goes where. `assignment`: shard index of every row, int32 [rows], -1 for a row already recorded.

    `order` lists the rows to render, shard after shard in the order of rendering: int64 [rows to render]; shard i has
    `order[starts[i]:starts[i + 1]]`. `clip_groups` counts the rows to render that cost the same.
    """

    shards: tuple[Shard, ...]
    assignment: npt.NDArray[np.int32]
    order: Indices
    starts: Indices
    clip_groups: Mapping[ClipGroup, int]

    @property
    def num_done(self) -> int:
        """Number of rows that were left out because they are recorded."""
        return len(self.assignment) - len(self.order)

    @property
    def over_bound(self) -> tuple[Shard, ...]:
        """The shards of single clips that take longer than a job may."""
        return tuple(shard for shard in self.shards if shard.over_bound)

    def rows(self, shard_index: int) -> Indices:
        """Returns the rows of one shard in the order of rendering."""
        return self.order[self.starts[shard_index] : self.starts[shard_index + 1]]


def plan_shards(
    batches: Iterable[pa.RecordBatch],
    done_keys: Iterable[str] | pa.Array | pa.ChunkedArray,
    *,
    cost: Callable[[ClipGroup], float],
    job_minutes: float,
    load_s: Mapping[str, float],
) -> ShardPlan:
    """Plans the accepted rows that are not recorded into shards. Same input, same plan.

    `batches`: an accepted manifest with at least PLAN_COLUMNS, in order (`ManifestFile.iter_batches`). `done_keys`:
    `<clip_id>.<digest>` of recorded clips. `cost`: seconds of one clip, asked once per distinct ClipGroup. `load_s`:
    seconds to load each model. Within a group the shards' seconds differ by at most one clip's cost and none exceeds
    `job_minutes`, except clips that alone exceed it: each is a shard of its own, see `ShardPlan.over_bound`.
    Raises ValueError if loading alone takes `job_minutes` or a cost is not a positive number.
    """
    codes, groups = _clip_groups(batches, KeySet(done_keys))
    costs = {group: _checked_cost(group, cost(group)) for group in groups}
    order_parts: list[Indices] = []
    shards: list[Shard] = []
    ranked = sorted(range(len(groups)), key=lambda code: groups[code])
    by_code = _rows_by_code(codes, len(groups))
    for shard_group in sorted({group.shard_group for group in groups}):
        members = [code for code in ranked if groups[code].shard_group == shard_group]
        load = load_s[shard_group.model]
        room = _room(shard_group, job_minutes, load)
        parts = _Parts.make([by_code[code] for code in members], [costs[groups[code]] for code in members], room)
        for num_clips, seconds, over in zip(parts.num_clips, parts.seconds, parts.over, strict=True):
            shards.append(
                Shard(
                    index=len(shards),
                    group=shard_group,
                    num_clips=int(num_clips),
                    seconds=load + float(seconds),
                    over_bound=bool(over),
                )
            )
        order_parts.append(parts.rows)
    counts = {groups[code]: len(by_code[code]) for code in ranked}
    return _plan(len(codes), shards, order_parts, counts)


def _plan(
    num_rows: int, shards: list[Shard], order_parts: list[Indices], clip_groups: Mapping[ClipGroup, int]
) -> ShardPlan:
    order = _joined(order_parts)
    num_clips = np.array([shard.num_clips for shard in shards], np.int64)
    starts = np.concatenate([[0], np.cumsum(num_clips)]).astype(np.int64)
    assignment = np.full(num_rows, -1, np.int32)
    assignment[order] = np.repeat(np.arange(len(shards), dtype=np.int32), num_clips)
    return ShardPlan(shards=tuple(shards), assignment=assignment, order=order, starts=starts, clip_groups=clip_groups)


def _clip_groups(batches: Iterable[pa.RecordBatch], done: KeySet) -> tuple[npt.NDArray[np.int32], list[ClipGroup]]:
    """Numbers the distinct clip groups: the number of every row, -1 where it is done, and the groups by number."""
    numbers: dict[ClipGroup, int] = {}
    parts = [np.empty(0, np.int32)]
    for batch in read_ahead(iter(batches)):
        guided = pc.not_equal(batch.column("guidance_scale"), 1.0)
        columns = {name: batch.column(name) for name in COST_COLUMNS[:-1]} | {"guided": guided}
        if "loops" in batch.schema.names:
            columns["loops"] = batch.column("loops")
        for name, plain in zip((*SAMPLING_COLUMNS, "lora"), ("", 0.0, ""), strict=True):
            if name in batch.schema.names:
                columns[name] = pc.fill_null(batch.column(name), plain)
        distinct, codes = distinct_rows(list(columns.values()))
        rows = pa.table(columns).take(pa.array(distinct)).to_pylist()
        known = np.array([numbers.setdefault(ClipGroup(**row), len(numbers)) for row in rows], np.int32)[codes]
        if len(done):
            keys = pc.binary_join_element_wise(batch.column("clip_id"), batch.column("digest"), ".")
            known[done.contains(keys)] = -1
        parts.append(known)
    codes = np.concatenate(parts)
    # Groups whose clips are all done are not asked for their cost.
    used = np.bincount(codes[codes >= 0], minlength=len(numbers)) > 0
    renumbered = np.append(np.cumsum(used) - 1, -1).astype(np.int32)
    return renumbered[codes], [group for group, number in numbers.items() if used[number]]


def _rows_by_code(codes: npt.NDArray[np.int32], num_codes: int) -> list[Indices]:
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(num_codes + 1))
    return [order[start:end] for start, end in itertools.pairwise(bounds)]


def _checked_cost(group: ClipGroup, seconds: float) -> float:
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"cost of {group} is {seconds!r}; a positive number of seconds is needed: check its figures")
    return float(seconds)


def _room(group: ShardGroup, job_minutes: float, load_s: float) -> float:
    room = 60 * job_minutes - load_s
    if not room > 0:
        raise ValueError(
            f"job_minutes={job_minutes:g}: loading {group.model} alone takes {load_s:g} s; "
            f"allow more than {load_s / 60:.1f} minutes"
        )
    return room


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The shards of one group: `rows` shard after shard; clips, seconds and the over-bound mark per shard."""

    rows: Indices
    num_clips: Indices
    seconds: Floats
    over: npt.NDArray[np.bool_]

    @classmethod
    def make(cls, rows: list[Indices], costs: list[float], room: float) -> _Parts:
        """Splits the rows of each clip group into as few shards as found that stay within `room`.

        In a shard the clips of one group are adjacent, in the order of the groups.
        """
        alone = [part for part, cost in zip(rows, costs, strict=True) if cost > room]
        alone_s = np.repeat([cost for cost in costs if cost > room], [len(part) for part in alone])
        shared = [part for part, cost in zip(rows, costs, strict=True) if cost <= room]
        counts = np.array([len(part) for part in shared], np.int64)
        shares, seconds = fewest_shares(counts, np.array([cost for cost in costs if cost <= room]), room)
        numbers = [np.repeat(np.arange(len(seconds)), share) for share in shares]
        in_shards = np.argsort(_joined(numbers), kind="stable")
        num_alone = len(alone_s)
        return cls(
            rows=np.concatenate([_joined(alone), _joined(shared)[in_shards]]),
            num_clips=np.concatenate([np.ones(num_alone, np.int64), shares.sum(axis=0)]),
            seconds=np.concatenate([alone_s, seconds]),
            over=np.arange(num_alone + len(seconds)) < num_alone,
        )


def _joined(parts: list[Indices]) -> Indices:
    return np.concatenate([np.empty(0, np.int64), *parts])


def fewest_shares(counts: Indices, costs: Floats, room: float) -> tuple[Indices, Floats]:
    """Finds few shards that hold `counts[i]` clips of `costs[i]` seconds each within `room` seconds.

    Every cost is at most `room`. Returns how many clips of each kind every shard gets, int64 [kinds, shards], and the
    seconds of every shard. The number is found by doubling steps from the least thinkable one, then halving them.
    """
    total, most = float(counts @ costs), int(counts.sum())
    if not most:
        return np.zeros((len(counts), 0), np.int64), np.zeros(0)
    bound = room * (1 + 1e-9)
    low = max(1, min(most, math.ceil(total / bound)))
    shares, seconds = even_shares(counts, costs, low)
    tried, step, best = low, 1, low
    while seconds.max() > bound:
        tried, best, step = best, min(most, best + step), 2 * step
        shares, seconds = even_shares(counts, costs, best)
    while best - tried > 1:
        middle = (best + tried) // 2
        candidate = even_shares(counts, costs, middle)
        if candidate[1].max() > bound:
            tried = middle
        else:
            best, (shares, seconds) = middle, candidate
    return shares, seconds


def even_shares(counts: Indices, costs: Floats, num_shards: int) -> tuple[Indices, Floats]:
    """Deals clips of several kinds to `num_shards` shards so that their seconds differ by at most one clip's cost.

    Of each kind every shard gets the same number, which changes no difference, and the shards with the fewest seconds
    one more. If differences were at most the dearest clip before, they are after. Dear clips are dealt first: the cheap
    ones even out what those left uneven. Returns as `fewest_shares` does.
    """
    shares = np.empty((len(counts), num_shards), np.int64)
    seconds = np.zeros(num_shards)
    for kind in np.argsort(-costs, kind="stable"):
        each, left = divmod(int(counts[kind]), num_shards)
        shares[kind] = each
        shares[kind, np.argsort(seconds, kind="stable")[:left]] += 1
        seconds += shares[kind] * costs[kind]
    return shares, seconds
