from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import accept
from manifests.read import open_manifest, read_clips
from manifests.rules import FamilyRules
from manifests.shard_files import write_shards
from manifests.shards import ClipGroup, ShardPlan, even_shares, fewest_shares, plan_shards
from tests.manifests.conftest import family

Write = Callable[..., str]


def step_cost(group: ClipGroup) -> float:
    return (
        group.num_steps * group.num_frames * (2.0 if group.guided else 1.0) * (0.6 if group.broadcast == "pab" else 1)
    )


def clips(num_rows: int, seed: int = 0) -> pa.RecordBatch:
    """Accepted rows of two models, two sizes, several steps, broadcasts and guidance scales."""
    rng = np.random.default_rng(seed)
    return pa.record_batch(
        {
            "clip_id": [f"clip-{i}" for i in range(num_rows)],
            "digest": [f"{i:016x}" for i in range(num_rows)],
            "model": rng.choice(["wan", "small"], num_rows),
            "height": np.full(num_rows, 64),
            "width": rng.choice([64, 128], num_rows),
            "num_frames": rng.choice([8, 16], num_rows, p=[0.1, 0.9]),
            "num_steps": rng.choice([10, 30, 50], num_rows),
            "broadcast": rng.choice(["none", "pab"], num_rows),
            "guidance_scale": rng.choice([1.0, 5.0, 7.5], num_rows),
        }
    )


def planned(batch: pa.RecordBatch, *, job_minutes: float = 120.0, done: list[str] | None = None) -> ShardPlan:
    load_s = {"wan": 100.0, "small": 10.0}
    return plan_shards([batch], done or [], cost=step_cost, job_minutes=job_minutes, load_s=load_s)


def row_costs(batch: pa.RecordBatch) -> np.ndarray:
    rows = batch.to_pylist()
    return np.array(
        [
            step_cost(
                ClipGroup(
                    **{
                        name: row[name] for name in ("model", "height", "width", "num_frames", "num_steps", "broadcast")
                    },
                    guided=row["guidance_scale"] != 1.0,
                )
            )
            for row in rows
        ]
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("job_minutes", [60.0, 97.0, 600.0])
def test_shards_hold_every_row_once_within_the_bound_and_balanced(seed: int, job_minutes: float) -> None:
    batch = clips(2000, seed)
    plan = planned(batch, job_minutes=job_minutes)
    costs, load_s = row_costs(batch), {"wan": 100.0, "small": 10.0}
    assert sorted(plan.order.tolist()) == list(range(2000))
    assert [shard.index for shard in plan.shards] == list(range(len(plan.shards)))
    by_group: dict[object, list[float]] = {}
    dearest: dict[object, float] = {}
    for shard in plan.shards:
        rows = plan.rows(shard.index)
        assert len(rows) == shard.num_clips > 0
        assert set(plan.assignment[rows].tolist()) == {shard.index}
        assert shard.seconds == pytest.approx(load_s[shard.group.model] + costs[rows].sum())
        assert shard.seconds <= 60 * job_minutes * (1 + 1e-9)
        taken = batch.take(pa.array(rows))
        for name in ("model", "height", "width", "num_frames"):
            assert set(taken.column(name).to_pylist()) == {getattr(shard.group, name)}
        by_group.setdefault(shard.group, []).append(shard.seconds)
        dearest[shard.group] = max(dearest.get(shard.group, 0.0), costs[rows].max())
    assert len(by_group) == 8
    for group, seconds in by_group.items():
        assert max(seconds) - min(seconds) <= dearest[group] * (1 + 1e-9)


def test_clips_with_equal_steps_and_broadcast_are_adjacent_in_a_shard() -> None:
    batch = clips(2000)
    plan = planned(batch, job_minutes=600)
    for shard in plan.shards:
        taken = batch.take(pa.array(plan.rows(shard.index)))
        kinds = list(zip(taken.column("num_steps").to_pylist(), taken.column("broadcast").to_pylist(), strict=True))
        changes = sum(before != after for before, after in itertools.pairwise(kinds))
        assert changes == len(set(kinds)) - 1


def test_the_same_rows_give_the_same_plan_in_any_batches() -> None:
    batch = clips(3000)
    cut = [batch.slice(start, 700) for start in range(0, 3000, 700)]
    one = planned(batch)
    other = plan_shards(cut, [], cost=step_cost, job_minutes=120, load_s={"wan": 100.0, "small": 10.0})
    assert one.shards == other.shards
    assert np.array_equal(one.order, other.order)


def test_resume_leaves_out_recorded_clips() -> None:
    batch = clips(500)
    done = [f"clip-{i}.{i:016x}" for i in range(0, 500, 2)]
    plan = planned(batch, done=[*done, "clip-1.ffffffffffffffff", "clip-3"])
    assert np.flatnonzero(plan.assignment >= 0).tolist() == list(range(1, 500, 2))
    assert plan.num_done == 250
    assert sorted(plan.order.tolist()) == list(range(1, 500, 2))


def test_a_run_with_every_clip_recorded_has_no_shards() -> None:
    batch = clips(10)
    plan = planned(batch, done=[f"clip-{i}.{i:016x}" for i in range(10)])
    assert plan.shards == ()
    assert plan.num_done == 10


def test_a_clip_over_the_bound_gets_its_own_shard_and_is_reported() -> None:
    batch = clips(300)
    costs = row_costs(batch)
    plan = planned(batch, job_minutes=1100 / 60)
    load_s = {"wan": 100.0, "small": 10.0}
    models = batch.column("model").to_pylist()
    too_long = {row for row in range(300) if costs[row] + load_s[models[row]] > 1100}
    assert 0 < len(too_long) < 300
    assert {int(plan.rows(shard.index)[0]) for shard in plan.over_bound} == too_long
    assert all(shard.num_clips == 1 for shard in plan.over_bound)
    assert all(shard.seconds <= 1100 * (1 + 1e-9) for shard in plan.shards if not shard.over_bound)


def test_cost_is_asked_once_per_distinct_group_still_to_render() -> None:
    asked: list[ClipGroup] = []

    def cost(group: ClipGroup) -> float:
        asked.append(group)
        return 1.0

    batch = clips(5000)
    plan_shards([batch], [], cost=cost, job_minutes=60, load_s={"wan": 1.0, "small": 1.0})
    assert len(asked) == len(set(asked)) == 2 * 2 * 2 * 3 * 2 * 2


def test_a_plan_counts_the_clips_that_cost_the_same() -> None:
    batch = clips(200)
    done = ["clip-3.0000000000000003"]
    counts = planned(batch, done=done).clip_groups
    assert sum(counts.values()) == 199
    guided = np.array([scale != 1.0 for scale in batch.column("guidance_scale").to_pylist()])
    guided[3] = False
    assert sum(count for group, count in counts.items() if group.guided) == guided.sum()


def test_no_more_shards_than_needed_for_equal_clips() -> None:
    shares, seconds = fewest_shares(np.array([100]), np.array([6.0]), 10.0)
    assert shares.tolist() == [[1] * 100]
    shares, seconds = fewest_shares(np.array([100]), np.array([3.0]), 10.0)
    assert shares.shape == (1, 34)
    assert seconds.max() == 9.0


def test_even_shares_differ_by_at_most_one_clip() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        costs = np.sort(rng.uniform(0.1, 9, rng.integers(1, 8)))[::-1]
        counts = rng.integers(1, 60, len(costs))
        shares, seconds = even_shares(counts, costs, int(rng.integers(1, counts.sum() + 1)))
        assert shares.sum(axis=1).tolist() == counts.tolist()
        assert seconds == pytest.approx(costs @ shares)
        assert seconds.max() - seconds.min() <= costs[0] + 1e-9


def test_loading_longer_than_a_job_is_refused() -> None:
    message = "job_minutes=1: loading wan alone takes 100 s; allow more than 1.7 minutes"
    with pytest.raises(ValueError, match=message):
        planned(clips(10), job_minutes=1)


def test_a_cost_that_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="is nan; a positive number of seconds is needed"):
        plan_shards([clips(3)], [], cost=lambda _: float("nan"), job_minutes=60, load_s={"wan": 1.0, "small": 1.0})


class Outputs:
    """Files in memory that remember how many were open at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.files: dict[int, bytes] = {}
        self.now_open = 0
        self.most_open = 0

    def open(self, index: int) -> BinaryIO:
        outputs = self

        class File(io.BytesIO):
            def close(self) -> None:
                if not self.closed:
                    outputs.files[index] = self.getvalue()
                    outputs._count(-1)
                super().close()

        self._count(1)
        return File()

    def _count(self, change: int) -> None:
        with self._lock:
            self.now_open += change
            self.most_open = max(self.most_open, self.now_open)


@pytest.mark.parametrize("window_bytes", [1, 20_000, 1 << 30])
def test_shard_files_hold_the_planned_clips_in_order(manifest: Write, tmp_path: Path, window_bytes: int) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "prompt": [f"prompt {i}" for i in range(1000)],
        "height": rng.choice([64, 128], 1000),
        "num_steps": np.repeat([20, 30], 500),
        "note": range(1000),
    }
    accept(manifest(columns), {"wan": family()}, default_model="wan", sink=tmp_path / "whole.parquet")
    pq.write_table(pq.read_table(tmp_path / "whole.parquet"), tmp_path / "accepted.parquet", row_group_size=90)
    outputs = Outputs()
    with open_manifest(str(tmp_path / "accepted.parquet")) as accepted:
        batches = accepted.iter_batches()
        done = [
            f"{row['clip_id']}.{row['digest']}" for row in pq.read_table(tmp_path / "whole.parquet").to_pylist()[:7]
        ]
        plan = plan_shards(batches, done, cost=lambda group: group.num_steps, job_minutes=20, load_s={"wan": 60.0})
        write_shards(plan, accepted, outputs.open, window_bytes=window_bytes, num_threads=2)
    assert len(plan.shards) > 10
    assert outputs.most_open <= 2
    assert outputs.now_open == 0
    for shard in plan.shards:
        rows = plan.rows(shard.index)
        table = pq.read_table(io.BytesIO(outputs.files[shard.index]))
        assert "note" not in table.column_names, "no job reads it, and it may be large"
        assert table["prompt"].to_pylist() == [f"prompt {row}" for row in rows]
        assert [clip.prompt for clip in read_clips(io.BytesIO(outputs.files[shard.index]))] == [
            f"prompt {row}" for row in rows
        ]
    assert sum(shard.num_clips for shard in plan.shards) == 993


def test_a_plan_of_another_manifest_is_refused(manifest: Write, rules: dict[str, FamilyRules], tmp_path: Path) -> None:
    accept(manifest({"prompt": ["a", "b"]}), rules, default_model="wan", sink=tmp_path / "a.parquet")
    message = r"the plan has 10 rows, .*a\.parquet 2; plan it again"
    with open_manifest(str(tmp_path / "a.parquet")) as accepted, pytest.raises(ValueError, match=message):
        write_shards(planned(clips(10)), accepted, Outputs().open)
