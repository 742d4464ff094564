"""A device that has no more memory is answered by keeping less, told in the record; on shared clips by the next start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist

from jobs.outcome import Failed, Rendered
from jobs.rendering.keep_ways import ways_down
from jobs.settings import Mesh
from jobs.store import layout
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.rules import NO_BROADCAST
from pab.family import LoadRequest
from tests.jobs.machines import RankError, run_on_forked_ranks
from tests.jobs.videos import read_video
from tests.jobs.world import TINY, clip, load_tiny, render_job, write_shard

TOLD = (
    "out of memory with broadcast pab, keep full, so it was rendered with broadcast pab, keep int8; its digest names what "
    "was asked for"
)
NOTHING = -1
"""A limit at which no pass fits."""


@dataclass(frozen=True)
class SmallDevice:
    """A model on a device that has room for so many bytes of kept outputs, on one rank of a group or on all."""

    model: object
    limit: int
    decodes: list[str]
    rank: int | None = None

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def predict(self, latents, step_input, text, visit, group):
        here = self.rank is None or self.rank == dist.get_rank()
        if here and visit.state.kept_bytes > self.limit:
            raise torch.OutOfMemoryError(f"tried to keep {visit.state.kept_bytes} bytes")
        return self.model.predict(latents, step_input, text, visit, group)

    def decode(self, latents, request, group):
        if self.decodes:
            raise torch.OutOfMemoryError(self.decodes.pop())
        return self.model.decode(latents, request, group)


def load_small(limit: int, decodes: int, rank: int | None, request: LoadRequest) -> SmallDevice:
    return SmallDevice(load_tiny(request), limit, ["tried to decode"] * decodes, rank)


def find_small(name: str, *, limit: int, decodes: int = 0, rank: int | None = None):
    return replace(TINY, name=name, load=partial(load_small, limit, decodes, rank))


def job_of(output, *, limit: int = 1 << 40, decodes: int = 0, rank: int | None = None, **changes):
    job = render_job(str(output), baseline=False, **changes)
    return replace(job, find_family=partial(find_small, limit=limit, decodes=decodes, rank=rank))


def records(bucket, items):
    return [bucket.read_json(layout.record(item.key)) for item in items]


def kept_bytes(tmp_path, name: str, **changes) -> int:
    bucket = write_shard(str(tmp_path / name), [clip(0, **changes)])
    job_of(tmp_path / name, keep="int8" if name == "int8" else "full")()
    (record,) = records(bucket, [clip(0, **changes)])
    return record["kept_bytes_peak"]


def test_the_ways_down_keep_less_and_less_and_end_without_broadcast():
    rules = TINY.presets["pab"]
    ways = ways_down(TINY, "pab", rules, "full", few=False)
    assert [str(way) for way in ways] == [
        "broadcast pab, keep full",
        "broadcast pab, keep int8",
        "broadcast pab-nocross, keep int8",
        "broadcast pab-nocross-half, keep int8",
        "broadcast none, keep full",
    ]
    assert [way.broadcast for way in ways_down(TINY, "pab", rules, "full", few=True)] == ["pab", "pab", "none"]
    assert [str(way) for way in ways_down(TINY, "pab", rules, "int8", few=False)][
        1
    ] == "broadcast pab-nocross, keep int8"
    foresight = ways_down(TINY, "foresight", ForesightRules(), "full", few=False)
    assert [way.broadcast for way in foresight] == ["foresight", "none"]
    assert len(ways_down(TINY, "none", NO_BROADCAST, "full", few=False)) == 1


def test_a_clip_that_does_not_fit_is_rendered_with_less_and_its_record_says_so(tmp_path):
    full, int8 = kept_bytes(tmp_path, "full"), kept_bytes(tmp_path, "int8")
    assert int8 < full
    items = [clip(0), clip(1), clip(2, broadcast="none")]
    bucket = write_shard(str(tmp_path / "out"), items)
    outcome = job_of(tmp_path / "out", limit=int8)()
    assert [type(each) for each in outcome.clips] == [Rendered] * 3
    first, second, third = records(bucket, items)
    for record in (first, second):
        assert record["execution"]["keep"] == "int8"
        assert (record["plan"]["broadcast"], record["plan"]["rendered"]) == ("pab", "pab")
        assert record["plan"]["out_of_memory"] is True
        assert record["counted"]["computed"] == record["planned"]["computed"]
        assert record["warnings"] == [TOLD]
    assert (third["warnings"], third["execution"]["keep"]) == ([], "full")
    assert "rendered" not in third["plan"]
    assert bucket.failures() == {}
    # The same pixels as of a run that asks for int8.
    assert np.array_equal(*(read_video(tmp_path / name / layout.video("clip.0"), 48, 32) for name in ("out", "int8")))
    # What such a clip took is no measure of what its broadcast takes.
    report = bucket.read_json(layout.job_report(7))
    assert [each["broadcast"] for each in report["measured"]] == ["none"]


def test_the_last_way_reuses_nothing_and_only_if_it_fails_the_clip_does(tmp_path):
    items = [clip(0), clip(1)]
    bucket = write_shard(str(tmp_path / "out"), items)
    outcome = job_of(tmp_path / "out", limit=0)()
    assert [type(each) for each in outcome.clips] == [Rendered] * 2
    for record in records(bucket, items):
        assert record["plan"]["rendered"] == "none"
        assert record["kept_bytes_peak"] == 0
        assert sum(record["counted"]["reused"].values()) == 0
    bucket = write_shard(str(tmp_path / "none"), items)
    outcome = job_of(tmp_path / "none", limit=NOTHING)()
    assert [type(each) for each in outcome.clips] == [Failed] * 2
    assert outcome.clips[0].error == "OutOfMemoryError"


def test_a_batch_that_does_not_fit_is_rendered_clip_by_clip_and_then_with_less(tmp_path):
    items = [clip(number, prompt="a b") for number in range(2)]
    int8 = kept_bytes(tmp_path, "int8")
    bucket = write_shard(str(tmp_path / "out"), items)
    outcome = job_of(tmp_path / "out", limit=int8, batch=2)()
    assert [type(each) for each in outcome.clips] == [Rendered] * 2
    assert [record["batch"]["size"] for record in records(bucket, items)] == [1, 1]
    assert [record["execution"]["keep"] for record in records(bucket, items)] == ["int8"] * 2


def test_decoding_is_tried_once_more_with_all_unused_memory_freed(tmp_path):
    items = [clip(0)]
    bucket = write_shard(str(tmp_path / "once"), items)
    assert isinstance(job_of(tmp_path / "once", decodes=1)().clips[0], Rendered)
    assert records(bucket, items)[0]["warnings"] == []
    write_shard(str(tmp_path / "twice"), items)
    outcome = job_of(tmp_path / "twice", decodes=2)()
    assert (outcome.clips[0].stage, outcome.clips[0].message) == ("decode", "tried to decode")


def test_ranks_that_share_a_clip_end_and_the_next_start_begins_with_less(tmp_path):
    items = [clip(0)]
    bucket = write_shard(str(tmp_path / "out"), items)
    job = job_of(tmp_path / "out", limit=0, rank=1, mesh=Mesh(sp=2))
    for told in ("broadcast pab, keep int8", "broadcast none, keep full"):
        with pytest.raises(
            RankError, match=rf"clip clip\.0: out of memory on one of its ranks; the next start .* {told}"
        ):
            run_on_forked_ranks(job, tmp_path / "jobs", ranks=2)
        # The attempt does not count: the clip has not failed, nor killed its group.
        assert (bucket.failures(), bucket.attempts()) == ({}, {})
    outcome, _ = run_on_forked_ranks(job, tmp_path / "jobs", ranks=2)
    assert [type(each) for each in outcome.clips] == [Rendered]
    (record,) = records(bucket, items)
    assert (record["plan"]["rendered"], record["attempt"]) == ("none", 1)
    assert len(list((tmp_path / "out" / "memory").iterdir())) == 2
