"""One shard as its driver sees it: what is asked for it, its job, and how far its clips are."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from cluster.job import Job, JobRequest, JobState
from cluster.run_state import JobLine
from jobs.store import layout
from jobs.store.bucket import Bucket
from manifests.read import read_clips
from pipeline.run.state import Progress

OPEN_STATES = (JobState.WAITING, JobState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """What is asked of the cluster for one shard. `again`: for a later start, which also tries failed clips again."""

    shard: int
    num_clips: int
    request: JobRequest
    again: JobRequest


@dataclass(slots=True)
class Driven:
    """A shard and its latest job. `wanted`: the job to be asked for next, from `ask_at` on; `waits` if it was refused."""

    asked: ShardJob
    job: Job
    tries_left: int
    deaths: list[frozenset[str]] = field(default_factory=list)
    """The nodes of its starts that ended without a clip, since the last that did not."""
    clips_ended: int = 0
    is_done: bool = False
    wanted: JobRequest | None = None
    waits: Iterator[float] | None = None
    ask_at: float = 0.0

    def has_ended(self, now: float) -> bool:
        """Whether its job has ended and something is to be done about it now."""
        return not self.is_done and self.job.state not in OPEN_STATES and now >= self.ask_at


def job_line(shard: Driven, keys: frozenset[str], progress: Progress) -> JobLine:
    """Returns how far a shard with these keys is, for the run's page."""
    done, failed = len(keys & progress.recorded), len(keys & progress.not_rendered)
    running = len(keys & progress.started)
    return JobLine(
        name=shard.asked.request.name,
        state=shard.job.state.value,
        done=done,
        failed=failed,
        running=running,
        queued=max(0, shard.asked.num_clips - done - failed - running),
    )


def why_again(left: Collection[str], progress: Progress) -> str:
    """Returns why a job that ended well is started again."""
    failed = len(progress.again.intersection(left))
    return f"{failed} of them failed and are tried on another node" if failed else "it ended with clips left"


def failed_nodes(bucket: Bucket, keys: Collection[str]) -> frozenset[str]:
    """Returns the nodes on which these clips failed. Raises BucketError."""
    failures = bucket.failures() if keys else {}
    paths = [layout.failure(key, max(failures[key])) for key in keys if key in failures]
    return frozenset(node for path in paths if (node := _node_in(bucket, path)))


def _node_in(bucket: Bucket, path: str) -> str | None:
    try:
        document = json.loads(bucket.read(path))
        return str(document["job"]["node"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        # A `retry` takes failures away meanwhile; of a damaged one only the node is not known.
        return None


def shard_keys(bucket: Bucket, shard: int) -> frozenset[str]:
    """Returns the keys of a shard's clips. Raises BucketError."""
    return frozenset(clip.key for clip in read_clips(io.BytesIO(bucket.read_present(layout.shard(shard)))))
