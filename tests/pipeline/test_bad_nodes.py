"""The driver's loop when nodes kill jobs: a bad node is learned and avoided, and nothing that is well is ended."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.job import CancelledError, Job, JobRequest, JobState, UnansweredError
from jobs.store import layout
from jobs.store.bucket import Bucket
from jobs.store.retry import RetryPolicy
from manifests.schema import CLIP_SCHEMA, accepted_schema
from pipeline.exits import CommandError, RefusedError
from pipeline.run.deaths import Deaths
from pipeline.run.display import open_display
from pipeline.run.driven import ShardJob
from pipeline.run.driver import Driver
from pipeline.run.jobs_file import new_submit, read_submits
from pipeline.run.machines import check_claim
from pipeline.screen import Screen
from tests.pipeline.machines import Quiet

KEYS = frozenset({"c1.0a", "c3.0a"})


@dataclass(slots=True, kw_only=True)
class NodeJob:
    name: str
    id: str
    avoid_nodes: frozenset[str]
    state: JobState = JobState.WAITING
    nodes: frozenset[str] = frozenset()
    polls: int = 0

    def result(self) -> object | None:
        return None

    def error(self) -> str | None:
        return "python: error while loading shared libraries" if self.state is JobState.LOST else None


@dataclass(slots=True, kw_only=True)
class Nodes(Quiet):
    """Nodes with a place each. A job on one of `bad` dies within a poll; on others it ends a clip after `polls` polls."""

    bucket: Bucket
    good: Sequence[str]
    bad: Sequence[str]
    polls: Callable[[str], int] = lambda _name: 3
    jobs: list[NodeJob] = field(default_factory=list)
    avoided: frozenset[str] = frozenset()

    def submit(self, requests: Sequence[JobRequest]) -> list[Job]:
        first = len(self.jobs)
        self.jobs += [
            NodeJob(name=request.name, id=str(first + index), avoid_nodes=request.avoid_nodes)
            for index, request in enumerate(requests)
        ]
        return list(self.jobs[first:])

    def alive(self) -> list[Job]:
        return list(self.jobs)

    def poll(self) -> None:
        for job in [job for job in self.jobs if job.state is JobState.RUNNING]:
            job.polls += 1
            if job.nodes & {*self.bad}:
                job.state = JobState.LOST
            elif job.polls >= self.polls(job.name):
                self.bucket.write_json(layout.record(f"c{layout.shard_of(job.name)}.0a"), {})
                job.state = JobState.ENDED
        # The nodes that kill are free at once, so they are taken first.
        for job in [job for job in self.jobs if job.state is JobState.WAITING]:
            taken = {node for other in self.jobs if other.state is JobState.RUNNING for node in other.nodes}
            free = [n for n in [*self.bad, *self.good] if n not in taken | self.avoided | job.avoid_nodes]
            if free:
                job.nodes, job.state = frozenset({free[0]}), JobState.RUNNING

    def take_back(self, jobs: Sequence[Job]) -> list[Job]:
        waiting = [job for job in self.jobs if job in jobs and job.state is JobState.WAITING]
        for job in waiting:
            job.state = JobState.CANCELLED
        return list(waiting)

    def avoid(self, nodes: frozenset[str]) -> frozenset[str]:
        left = {*self.good, *self.bad} - self.avoided
        for node in sorted(nodes - self.avoided):
            if len(left) > 1:
                left -= {node}
                self.avoided |= {node}
        return self.avoided


def shard(number: int) -> ShardJob:
    request = JobRequest(
        name=layout.job_name(number), call=int, num_nodes=1, ranks_per_node=1, gpus_per_node=0, timeout_min=1
    )  # fmt: skip
    return ShardJob(shard=number, num_clips=1, request=request, again=request)


def a_shard(clip_id: str) -> bytes:
    clip = {
        "clip_id": clip_id, "digest": "0a", "prompt": "a circle", "seed": 1, "model": "demo", "num_frames": 8,
        "height": 32, "width": 32, "fps": 8, "num_steps": 4, "guidance_scale": 1.0, "broadcast": "none", "loops": 1,
    }  # fmt: skip
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([clip], schema=accepted_schema(CLIP_SCHEMA)), stream)
    return stream.getvalue()


def start(bucket: Bucket, machines: Nodes, num_shards: int) -> Driver:
    for number in range(num_shards):
        bucket.write(layout.shard(number), a_shard(f"c{number}"))
    keys = frozenset(f"c{number}.0a" for number in range(num_shards))
    submit = new_submit("slurm", "none")
    driver = Driver(machines, bucket, screen=Screen(), submit=submit, keys=keys, poll_s=0.002)
    driver.start([shard(number) for number in range(num_shards)])
    return driver


def run(driver: Driver) -> None:
    driver.run(open_display(), planned_s=0.0, keep_alive=lambda: None)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(str(tmp_path), retry_policy=RetryPolicy(total_s=0.1))


def test_one_bad_node_among_others_costs_two_starts_and_no_clip(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    machines = Nodes(bucket=bucket, good=["n1", "n2", "n3"], bad=["n0"])
    run(start(bucket, machines, 24))
    assert bucket.recorded_keys() == {f"c{number}.0a" for number in range(24)}
    assert machines.avoided == {"n0"}
    assert sum(job.nodes == {"n0"} for job in machines.jobs) <= 3
    said = capsys.readouterr().err
    assert said.count("n0: 2 jobs ended there without a clip, so later starts avoid it; the last, job-") == 1
    assert "error while loading shared libraries" in said


def test_several_bad_nodes_end_no_healthy_job_though_more_jobs_die_in_a_row_than_a_run_may_lose(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [f"n{index}" for index in range(6)]
    machines = Nodes(bucket=bucket, good=["m0"], bad=bad, polls=lambda name: 40 if name == "job-00006" else 2)
    run(start(bucket, machines, 9))
    assert bucket.recorded_keys() == {f"c{number}.0a" for number in range(9)}
    assert machines.avoided == {*bad}
    assert "no job is started again until one of those at work ends a clip" in capsys.readouterr().err


def test_the_last_node_is_never_avoided_and_a_run_on_it_ends_with_the_reason(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    machines = Nodes(bucket=bucket, good=[], bad=["n0"])
    with pytest.raises(CommandError, match=r"jobs in a row ended without rendering a clip(?s:.*)shared libraries"):
        run(start(bucket, machines, 40))
    assert machines.avoided == set()
    started = [job for job in machines.jobs if job.nodes]
    assert len(started) <= 13
    assert "later starts avoid it" not in capsys.readouterr().err
    # Only jobs that had not begun are taken back.
    assert {job.state for job in machines.jobs} <= {JobState.LOST, JobState.CANCELLED}


def test_progress_of_any_job_counts_against_deaths_in_a_row() -> None:
    deaths = Deaths(limit=3, avoid=lambda _nodes: frozenset())
    for _ in range(20):
        deaths.died(frozenset({"a"}))
        deaths.died(frozenset())
        deaths.progressed(frozenset({"b"}))
    assert not deaths.every_start_dies
    for _ in range(3):
        deaths.died(frozenset())
    assert deaths.every_start_dies
    deaths.progressed(frozenset())
    assert not deaths.every_start_dies


def test_a_node_on_which_a_clip_ends_between_two_deaths_is_not_avoided() -> None:
    deaths = Deaths(limit=6, avoid=lambda nodes: nodes)
    for _ in range(4):
        assert deaths.died(frozenset({"a", "b"})) == set()
        deaths.progressed(frozenset({"a", "b"}))
    deaths.died(frozenset({"a", "b"}))
    deaths.progressed(frozenset({"b"}))
    assert deaths.died(frozenset({"a", "b"})) == {"a"}
    assert deaths.blames_node(frozenset({"a", "c"}))
    assert not deaths.blames_node(frozenset({"b", "c"}))


@dataclass(slots=True, kw_only=True)
class Answers(Nodes):
    """A cluster of which the first answers are these errors."""

    errors: list[Exception] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def submit(self, requests: Sequence[JobRequest]) -> list[Job]:
        self.asked.append(len(requests))
        if self.errors:
            raise self.errors.pop(0)
        return Nodes.submit(self, requests)


def test_jobs_of_which_nobody_knows_whether_they_were_taken_are_asked_for_until_that_is_known(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    errors: list[Exception] = [UnansweredError("sbatch did not say"), UnansweredError("sbatch did not say")]
    machines = Answers(bucket=bucket, good=["n1"], bad=[], errors=errors)
    run(start(bucket, machines, 2))
    assert machines.asked == [2, 2, 2]
    assert capsys.readouterr().err.count("sbatch did not say; looked for again in ") == 2


def test_a_job_that_nobody_drives_is_driven_beside_those_that_are_handed_over(bucket: Bucket) -> None:
    machines = Nodes(bucket=bucket, good=["n1"], bad=["n0"])
    start(bucket, machines, 2)
    earlier = machines.jobs[1]
    bucket.write(layout.shard(3), a_shard("c3"))
    driver = Driver(
        machines, bucket, screen=Screen(), submit=new_submit("slurm", "none"), keys=KEYS, poll_s=0.002
    )  # fmt: skip
    driver.start([shard(3)], [(shard(1), earlier)])
    assert [job.name for job in machines.jobs[2:]] == ["job-00003"]
    assert driver.jobs == [earlier, machines.jobs[2]]
    run(driver)
    assert {"c1.0a", "c3.0a"} <= bucket.recorded_keys()


@dataclass(slots=True, kw_only=True)
class MakesFolder(Nodes):
    """A cluster that makes its folder when it is given jobs, as SLURM's does."""

    folder: Path

    def submit(self, requests: Sequence[JobRequest]) -> list[Job]:
        self.folder.mkdir()
        return Nodes.submit(self, requests)


def test_the_runs_folder_on_this_machine_says_whose_output_it_is(bucket: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    machines = MakesFolder(bucket=bucket, good=["n1"], bad=[], folder=folder)
    bucket.write(layout.shard(0), a_shard("c0"))
    Driver(machines, bucket, screen=Screen(), submit=new_submit("slurm", str(folder)), keys=KEYS).start([shard(0)])
    check_claim(folder, bucket.url)
    with pytest.raises(RefusedError, match="names a run that this machine knows as the one in"):
        check_claim(folder, "s3://another/run")


def test_a_cancelled_run_starts_no_job_again(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    machines = Answers(bucket=bucket, good=[], bad=["n0"])
    driver = start(bucket, machines, 2)
    machines.errors = [CancelledError("the run was cancelled meanwhile")] * 9
    run(driver)
    assert machines.asked == [2, 1, 1]
    assert capsys.readouterr().err.count("the run was cancelled meanwhile") == 2


def test_a_damaged_shard_ends_with_its_job_and_the_others_are_driven_to_their_end(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    machines = Nodes(bucket=bucket, good=["n1"], bad=[])
    driver = start(bucket, machines, 3)
    bucket.write(layout.shard(1), b"")
    run(driver)
    assert {"c0.0a", "c2.0a"} <= bucket.recorded_keys()
    assert "job-00001: its clips wait for the next submit, its shard is damaged" in capsys.readouterr().err


@dataclass(slots=True, kw_only=True)
class Scarce(Nodes):
    """A cluster that says this, one text a look, of jobs that wait; the last text stands."""

    says: list[str | None]
    asked_for: set[int] = field(default_factory=set)

    def shortage(self, jobs: Sequence[Job], num_nodes: int) -> str | None:
        self.asked_for.add(num_nodes)
        return self.says.pop(0) if len(self.says) > 1 else self.says[0]


def test_nodes_that_cannot_be_had_are_told_once_per_change_and_stand_in_the_bucket_for_status(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    first, then = (
        "job-00001 waits for 2 nodes, 1 is usable: n1 drained (disk)",
        "job-00001 waits for 2 nodes, 0 are usable",
    )
    machines = Scarce(bucket=bucket, good=["n2"], bad=[], says=[first, first, then, None], polls=lambda _name: 10**6)
    machines.polls = lambda _name: 10**6 if len(machines.says) > 1 else 1  # until all has been said
    driver = start(bucket, machines, 3)
    seen: list[tuple[str | None, bool]] = []

    def look() -> None:
        (submit,) = read_submits(bucket)
        seen.append((submit.waits_for, submit.waits_since is not None))

    driver.run(open_display(), planned_s=0.0, keep_alive=look)
    said = capsys.readouterr().err
    assert [said.count(text) for text in (first, then, "find enough usable nodes again")] == [1, 1, 1]
    assert list(dict.fromkeys(seen)) == [(first, True), (then, True), (None, False)]
    assert machines.asked_for == {1}
