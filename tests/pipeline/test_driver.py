"""The driver's loop over a cluster that does as it is told, with a bucket that does not."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.job import ClusterError, Job, JobRequest, JobState
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from jobs.store.retry import RetryPolicy
from manifests.schema import CLIP_SCHEMA, accepted_schema
from pipeline.run.display import open_display
from pipeline.run.driven import ShardJob, shard_keys
from pipeline.run.driver import Driver
from pipeline.run.jobs_file import new_submit, read_submits
from pipeline.run.state import read_progress
from pipeline.screen import Screen
from tests.pipeline.machines import Quiet

KEYS = frozenset({"c0.0a"})


@dataclass(slots=True, kw_only=True)
class OneJob:
    name: str
    id: str = "17"
    state: JobState = JobState.RUNNING
    nodes: frozenset[str] = frozenset()

    def result(self) -> object | None:
        return None

    def error(self) -> str | None:
        return None


@dataclass(slots=True, kw_only=True)
class Machines(Quiet):
    """Jobs that run for `polls` polls and are then cancelled; `on_submit` is called when they start."""

    on_submit: Callable[[], object]
    polls: int = 2
    started: list[OneJob] = field(default_factory=list)

    def submit(self, requests: Sequence[JobRequest]) -> list[Job]:
        self.on_submit()
        self.started += [OneJob(name=request.name) for request in requests]
        return list(self.started)

    def poll(self) -> None:
        self.polls -= 1
        for job in self.started:
            job.state = JobState.RUNNING if self.polls else JobState.CANCELLED


def shard_job() -> ShardJob:
    request = JobRequest(
        name="job-00000", call=int, num_nodes=1, ranks_per_node=1, gpus_per_node=0, timeout_min=1
    )  # fmt: skip
    return ShardJob(shard=0, num_clips=1, request=request, again=replace(request, call=float))


def driver_of(folder: Path, machines: Machines) -> Driver:
    bucket = Bucket(str(folder), retry_policy=RetryPolicy(total_s=0.1))
    return Driver(machines, bucket, screen=Screen(), submit=new_submit("slurm", "work"), keys=KEYS)


def test_a_driver_stays_with_its_jobs_when_the_bucket_refuses_from_their_start_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        (tmp_path / "logs").rename(tmp_path / "kept")
        (tmp_path / "logs").write_text("a file, where a folder must be")

    machines = Machines(on_submit=refuse)
    driver = driver_of(tmp_path, machines)
    driver.start([shard_job()])
    assert [job.name for job in driver.jobs] == ["job-00000"]
    assert "does not take the names of the jobs, which go on" in capsys.readouterr().err
    kept_alive = []

    def give_in() -> None:
        kept_alive.append(machines.polls)
        if machines.polls == 0:
            (tmp_path / "logs").unlink()
            (tmp_path / "kept").rename(tmp_path / "logs")
            (tmp_path / "shards").mkdir()
            (tmp_path / "shards/00000.parquet").write_bytes(a_shard())

    driver.run(open_display(), planned_s=0.0, keep_alive=give_in)
    assert "the jobs go on without a look at them: cannot write" in capsys.readouterr().err
    driver.end()
    (submit,) = read_submits(Bucket(str(tmp_path)))
    assert (submit.jobs, submit.ended is not None) == ((("job-00000", "17"),), True)
    assert kept_alive == [1, 0]


def test_no_job_is_started_that_cancel_could_not_find(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file, where a folder must be")
    machines = Machines(on_submit=lambda: pytest.fail("a job was started"))
    with pytest.raises(BucketError, match=r"cannot write .*/logs/jobs-"):
        driver_of(tmp_path, machines).start([shard_job()])


def test_a_shard_that_cannot_be_read_is_an_error_of_the_bucket(tmp_path: Path) -> None:
    with pytest.raises(BucketError, match=r"shards/00000.parquet: there is no such file; submit the run again"):
        shard_keys(Bucket(str(tmp_path)), 0)


def a_shard(*clips: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(clips), schema=accepted_schema(CLIP_SCHEMA)), stream)
    return stream.getvalue()


@dataclass(slots=True, kw_only=True)
class Refusing(Quiet):
    """Jobs that end at once; `refusals` of those that start again are refused. `avoidable`: there are other nodes."""

    refusals: int
    avoidable: bool = True
    asked: list[JobRequest] = field(default_factory=list)
    on_start: Callable[[int], object] = int

    def submit(self, requests: Sequence[JobRequest]) -> list[Job]:
        for request in requests:
            if request.avoid_nodes and not self.avoidable:
                raise ClusterError("Requested node configuration is not available")
            if self.asked and self.refusals:
                self.refusals -= 1
                raise ClusterError("Unable to contact slurm controller")
            self.asked.append(request)
            self.on_start(len(self.asked))
        return [OneJob(name=request.name, state=JobState.LOST) for request in requests]

    def poll(self) -> None:
        return


def drive(folder: Path, machines: Refusing, *, retry_policy: RetryPolicy, max_attempts: int = 2) -> Driver:
    (folder / "shards").mkdir()
    (folder / "shards/00000.parquet").write_bytes(a_shard(CLIP))
    submit = new_submit("slurm", "work", max_attempts=max_attempts)
    bucket = Bucket(str(folder))
    driver = Driver(machines, bucket, screen=Screen(), submit=submit, keys=KEYS, restarts=retry_policy)
    driver.start([shard_job()])
    driver.run(open_display(), planned_s=0.0, keep_alive=lambda: None)
    return driver


CLIP = {
    "clip_id": "c0", "digest": "0a", "prompt": "a circle", "seed": 1, "model": "demo", "num_frames": 8, "height": 32,
    "width": 32, "fps": 8, "num_steps": 4, "guidance_scale": 1.0, "broadcast": "none", "loops": 1,
}  # fmt: skip


def test_a_job_that_is_refused_when_it_must_start_again_is_asked_for_until_it_is_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = Bucket(str(tmp_path))
    machines = Refusing(refusals=2, on_start=lambda start: start == 2 and bucket.write_json(layout.record("c0.0a"), {}))
    driver = drive(tmp_path, machines, retry_policy=RetryPolicy(total_s=60, first_wait_s=0.05))
    assert [request.call for request in machines.asked] == [int, float]
    said = capsys.readouterr().err
    assert said.count("job-00000: refused, asked for again in ") == 2
    assert "Unable to contact slurm controller" in said
    assert len(driver.jobs) == 2


def test_a_job_that_is_refused_for_too_long_is_given_up_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machines = Refusing(refusals=1000)
    drive(tmp_path, machines, retry_policy=RetryPolicy(total_s=0.3, first_wait_s=0.05, longest_wait_s=0.1))
    assert len(machines.asked) == 1
    assert "job-00000: given up, refused for 0 minutes: Unable to contact" in capsys.readouterr().err


def test_a_clip_that_killed_its_last_group_is_given_up_without_another_start(tmp_path: Path) -> None:
    bucket = Bucket(str(tmp_path))
    machines = Refusing(refusals=0, on_start=lambda start: bucket.write(layout.attempt("c0.0a", start), b"{}"))
    drive(tmp_path, machines, retry_policy=RetryPolicy())
    assert len(machines.asked) == 2
    assert read_progress(bucket, KEYS).quarantined == {"c0.0a"}


@pytest.mark.parametrize(("avoidable", "avoided"), [(True, {"node7"}), (False, set())])
def test_a_clip_that_failed_is_tried_again_on_another_node_if_there_is_one(
    tmp_path: Path, avoidable: bool, avoided: set[str]
) -> None:
    bucket = Bucket(str(tmp_path))

    def fail(start: int) -> None:
        bucket.write(layout.attempt("c0.0a", start), b"{}")
        bucket.write_json(layout.failure("c0.0a", start), {"job": {"node": "node7"}})

    machines = Refusing(refusals=0, avoidable=avoidable, on_start=fail)
    drive(tmp_path, machines, retry_policy=RetryPolicy())
    assert [request.avoid_nodes for request in machines.asked] == [set(), avoided]
    # What the user made it wait for is over, and forgotten by the cluster perhaps.
    assert [request.is_restart for request in machines.asked] == [False, True]
    assert read_progress(bucket, KEYS).failed == {"c0.0a"}


@pytest.mark.parametrize("ends", ["with a failure", "with its job"])
def test_a_clip_is_tried_as_often_as_the_run_says(tmp_path: Path, ends: str) -> None:
    bucket = Bucket(str(tmp_path))

    def end(start: int) -> None:
        bucket.write(layout.attempt("c0.0a", start), b"{}")
        if ends == "with a failure":
            bucket.write_json(layout.failure("c0.0a", start), {"job": {"node": "node7"}})

    machines = Refusing(refusals=0, on_start=end)
    drive(tmp_path, machines, retry_policy=RetryPolicy(), max_attempts=6)
    assert len(machines.asked) == 6
    assert read_progress(bucket, KEYS).not_rendered == {"c0.0a"}
