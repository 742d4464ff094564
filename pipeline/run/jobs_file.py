"""Which jobs a submit started: `logs/jobs-<submit>.json`, one file for each submit, so that two at once do not collide."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from cluster.job import Job
from jobs.settings import MAX_ATTEMPTS
from jobs.store.bucket import Bucket

_PREFIX = "jobs-"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedJobs:
    """The jobs of one submit. `folder`: where the cluster keeps scripts, results and error output; `pid` is the driver's.

    `jobs`: (name, the cluster's own id) in the order of submission; a shard that was started again is there twice.
    `max_attempts`: after how many attempts its jobs give a clip up.
    """

    submit_id: str
    cluster: str
    host: str
    pid: int
    started: str
    folder: str
    jobs: tuple[tuple[str, str], ...] = ()
    ended: str | None = None
    max_attempts: int = MAX_ATTEMPTS

    @property
    def path(self) -> str:
        """Where this is in the bucket."""
        return f"logs/{_PREFIX}{self.submit_id}.json"

    def with_jobs(self, jobs: Iterable[Job]) -> StartedJobs:
        """Returns the same submit with these jobs."""
        return replace(self, jobs=tuple((job.name, job.id) for job in jobs))

    def finished(self) -> StartedJobs:
        """Returns the same submit with the driver gone."""
        return replace(self, ended=_now())

    def write(self, bucket: Bucket) -> None:
        """Writes it. Raises BucketError."""
        bucket.write_json(self.path, asdict(self))


def new_submit(cluster: str, folder: str, *, max_attempts: int = MAX_ATTEMPTS) -> StartedJobs:
    """Returns a submit of this process, without jobs yet."""
    return StartedJobs(
        submit_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}",
        cluster=cluster,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_now(),
        folder=folder,
        max_attempts=max_attempts,
    )


def read_submits(bucket: Bucket) -> Iterator[StartedJobs]:
    """Yields all submits of a run, the oldest first. Raises BucketError."""
    yield from (_read(bucket, name) for name in _names(bucket))


def attempts_allowed(bucket: Bucket) -> int:
    """Returns after how many attempts the latest submit of a run gives a clip up. Raises BucketError."""
    names = _names(bucket)
    return _read(bucket, names[-1]).max_attempts if names else MAX_ATTEMPTS


def _names(bucket: Bucket) -> list[str]:
    return sorted(name for name in bucket.names("logs") if name.startswith(_PREFIX) and name.endswith(".json"))


def _read(bucket: Bucket, name: str) -> StartedJobs:
    document = bucket.read_json(f"logs/{name}")
    jobs = tuple((str(job), str(job_id)) for job, job_id in document.pop("jobs"))
    return StartedJobs(**document, jobs=jobs)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
