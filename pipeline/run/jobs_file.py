"""Which jobs a submit started: `logs/jobs-<submit>.json`, one file for each submit, so that two at once do not collide."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from cluster.job import Job
from jobs.render_settings import MAX_ATTEMPTS
from jobs.store.bucket import Bucket

_LOG = logging.getLogger(__name__)
_PREFIX = "jobs-"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedJobs:
    """The jobs of one submit, for people to read: whoever writes to the bucket can write this, so nothing is ended by it.

    It says which clips a job of the queue renders that was submitted from another machine (`pipeline/run/at_work.py`).

    `folder`: where the cluster keeps scripts, results and error output; `pid` is the driver's.

    `jobs`: (name, the cluster's own id) in the order of submission; a shard that was started again is there twice.
    `max_attempts`: after how many attempts its jobs give a clip up. `waits_for`: nodes that its jobs wait for and that cannot
    be had, in words, since `waits_since`. `gpu_s`: by job, the GPU-seconds that its driver counted.
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
    waits_for: str | None = None
    waits_since: str | None = None
    gpu_s: tuple[tuple[str, float], ...] = ()
    price_per_gpu_hour: float | None = None
    budget: float | None = None

    @property
    def path(self) -> str:
        """Where this is in the bucket."""
        return f"logs/{_PREFIX}{self.submit_id}.json"

    @property
    def slurm_ids(self) -> list[str]:
        """The ids of its arrays and jobs in SLURM, each once, as `sbatch --dependency` takes them joined with ':'."""
        ids = (job_id.partition("_")[0] for _, job_id in self.jobs if job_id) if self.cluster == "slurm" else ()
        return list(dict.fromkeys(ids))

    def with_jobs(self, jobs: Iterable[Job], gpu_s: Mapping[str, float] | None = None) -> StartedJobs:
        """Returns the same submit with these jobs, and the GPU-seconds of each by its name."""
        spent = tuple((name, round(seconds, 1)) for name, seconds in (gpu_s or {}).items())
        return replace(self, jobs=tuple((job.name, job.id) for job in jobs), gpu_s=spent)

    def waiting_for(self, nodes: str | None) -> StartedJobs:
        """Returns the same submit, whose jobs wait for these nodes, in words, from now on; None: all nodes can be had."""
        return replace(self, waits_for=nodes, waits_since=None if nodes is None else _now())

    def finished(self) -> StartedJobs:
        """Returns the same submit with the driver gone."""
        return replace(self, ended=_now())

    def write(self, bucket: Bucket) -> None:
        """Writes it. Raises BucketError."""
        bucket.write_json(self.path, asdict(self))


def new_submit(
    cluster: str,
    folder: str,
    *,
    max_attempts: int = MAX_ATTEMPTS,
    price_per_gpu_hour: float | None = None,
    budget: float | None = None,
) -> StartedJobs:
    """Returns a submit of this process, without jobs yet."""
    return StartedJobs(
        submit_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}",
        cluster=cluster,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_now(),
        folder=folder,
        max_attempts=max_attempts,
        price_per_gpu_hour=price_per_gpu_hour,
        budget=budget,
    )


def read_submits(bucket: Bucket) -> Iterator[StartedJobs]:
    """Yields all submits of a run, the oldest first, without those whose file is damaged. Raises BucketError."""
    found = (_read(bucket, name) for name in _names(bucket))
    yield from (submit for submit in found if submit is not None)


def attempts_allowed(bucket: Bucket) -> int:
    """Returns after how many attempts the latest submit of a run gives a clip up. Raises BucketError."""
    for name in reversed(_names(bucket)):
        submit = _read(bucket, name)
        if submit is not None:
            return submit.max_attempts
    return MAX_ATTEMPTS


def _names(bucket: Bucket) -> list[str]:
    return sorted(name for name in bucket.names("logs") if name.startswith(_PREFIX) and name.endswith(".json"))


def _read(bucket: Bucket, name: str) -> StartedJobs | None:
    path = f"logs/{name}"
    try:
        document = json.loads(bucket.read(path))
        jobs = tuple((str(job), str(job_id)) for job, job_id in document.pop("jobs"))
        texts = {key: str(document[key]) for key in ("submit_id", "cluster", "host", "started", "folder")}
        ended, waits_for, waits_since = (document.get(key) for key in ("ended", "waits_for", "waits_since"))
        return StartedJobs(
            **texts,
            pid=int(document["pid"]),
            jobs=jobs,
            ended=None if ended is None else str(ended),
            max_attempts=max(1, int(document.get("max_attempts", MAX_ATTEMPTS))),
            waits_for=None if waits_for is None else str(waits_for),
            waits_since=None if waits_since is None else str(waits_since),
            gpu_s=tuple((str(name), _positive(seconds) or 0.0) for name, seconds in document.get("gpu_s", ())),
            price_per_gpu_hour=_positive(document.get("price_per_gpu_hour")),
            budget=_positive(document.get("budget")),
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # What decides is elsewhere: in the records, and in the run's folder on the machine that submitted.
        _LOG.warning("%s/%s is damaged and counts as absent: %r", bucket.url, path, error)
        return None


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
