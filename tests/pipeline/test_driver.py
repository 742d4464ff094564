"""The driver's loop over a cluster that does as it is told, with a bucket that does not."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.job import Job, JobRequest, JobState
from jobs.bucket import Bucket, BucketError
from jobs.patience import Patience
from manifests.schema import CLIP_SCHEMA, accepted_schema
from pipeline.display import open_display
from pipeline.driver import Driver, ShardJob, shard_keys
from pipeline.jobs_file import new_submit, read_submits
from pipeline.screen import Screen


@dataclass(slots=True, kw_only=True)
class OneJob:
    name: str
    id: str = "17"
    state: JobState = JobState.RUNNING

    def result(self) -> object | None:
        return None

    def error(self) -> str | None:
        return None


@dataclass(slots=True, kw_only=True)
class Machines:
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

    def cancel(self, jobs: Sequence[Job]) -> None:
        assert not jobs, "nothing is to be cancelled here"


def shard_job() -> ShardJob:
    request = JobRequest(
        name="job-00000", call=int, num_nodes=1, ranks_per_node=1, gpus_per_node=0, timeout_min=1
    )  # fmt: skip
    return ShardJob(shard=0, num_clips=1, request=request)


def driver_of(folder: Path, machines: Machines) -> Driver:
    bucket = Bucket(str(folder), patience=Patience(total_s=0.1))
    return Driver(machines, bucket, screen=Screen(), submit=new_submit("slurm", "work"), num_clips=1)


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


def a_shard() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([], schema=accepted_schema(CLIP_SCHEMA)), stream)
    return stream.getvalue()
