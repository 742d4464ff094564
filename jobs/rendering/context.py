"""The context that all parts of a running job share, and the one place where a clip's error becomes a value."""

from __future__ import annotations

import logging
import platform
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from jobs.log import log_event
from jobs.media.ffmpeg import ffmpeg_version
from jobs.outcome import Failed
from jobs.provenance.sign import VideoSigner
from jobs.rendering.attempts import OpenAttempts
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.group import JobRanks, is_lost_peer
from jobs.settings import JobSettings
from jobs.store import layout
from jobs.store.bucket import Bucket
from jobs.version import VERSION, code_digest, other_than, program

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class GroupLostError(Exception):
    """The ranks of a clip can no longer work together: the job ends, and its next start continues from the records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """One running job on one rank.

    `scratch`: a local folder that is removed with the job. `again`: whether this start retries clips that failed before.
    `signer`: puts manifests into videos; None if the run has none.
    """

    settings: JobSettings
    shard: int
    bucket: Bucket
    ranks: JobRanks
    attempts: OpenAttempts
    scratch: Path
    again: bool = False
    signer: VideoSigner | None = None

    def store_s(self, calls: int) -> float:
        """Returns the seconds that so many calls of the bucket may take at most: each is retried while the bucket is away."""
        return calls * self.settings.upload_timeout_s

    @property
    def other_program(self) -> str | None:
        """What to say if this rank runs another program than the job's driver; None if the same."""
        return other_than(self.settings.driver, program())

    def facts(self) -> dict[str, Any]:
        """Returns where this runs, for records, failures and reports."""
        place, device = self.ranks.place, self.ranks.node.device
        # Sums of a CPU are cut by its threads, so they round otherwise with more of them.
        threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
        return {
            "run_id": self.settings.run_id,
            "shard": self.shard,
            "job_id": place.job_id,
            "start": place.start,
            "rank": place.rank,
            "ranks": place.world,
            "mesh": str(self.settings.mesh),
            "host": self.ranks.host,
            "node": place.node,
            "device": device_name(device),
            **threads,
            "precision": self.settings.render.precision,
            "weights": self.settings.weights,
        }


def device_name(device: torch.device) -> str:
    """Returns the device's own name, such as the GPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()})"


def versions() -> dict[str, str]:
    """Returns the versions of the software that computes or encodes pixels."""
    return {
        "pab-pipeline": VERSION,
        "code": code_digest(),
        "torch": torch.__version__,
        "triton": _installed("triton"),
        "fa3-fwd": _installed("fa3-fwd"),
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
        "ffmpeg": ffmpeg_version(),
    }


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def contain(attempt: Attempt, context: JobContext, work: Callable[[], T], *, collective: bool) -> T | Failed:
    """Returns the work's result or, after an error, writes the clip's failure and returns it as a `Failed`.

    `collective`: whether other ranks share this work. If so, an error ends the whole group, so GroupLostError is raised. An
    error that only says that another rank is gone is not the clip's failure, so none is written. Raises BucketError.
    """
    try:
        return work()
    except GroupLostError:
        raise  # a rank without memory has said what the next start does
    except Exception as error:  # the clip's border: no error of a model, ffmpeg or a store may harm other clips
        if context.attempts.is_withdrawn(attempt.clip.key, attempt.number):
            # The job is being ended from outside, so this error is not the clip's fault.
            raise
        shared = collective and context.ranks.shares_clips
        if shared and is_lost_peer(error):
            raise GroupLostError(f"clip {attempt.clip.clip_id}: a rank of the group is gone ({error})") from error
        failed = write_failure(attempt, context, error)
        if shared:
            raise GroupLostError(f"clip {attempt.clip.clip_id}: {failed.error} in {failed.stage}") from error
    # Outside of `except`, so that the traceback no longer holds the clip's tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failed


def contain_batch(attempts: Sequence[Attempt], context: JobContext, work: Callable[[], T]) -> T | None:
    """Returns the result of the work on a batch, or None after an error, which any of its clips may have caused.

    No failure is written; the caller then renders the clips one by one. Raises GroupLostError if other ranks share the clips;
    each clip has its mark, so the next start renders it alone.
    """
    try:
        return work()
    except GroupLostError:
        raise  # a rank without memory has said what the next start does
    except Exception as error:  # the batch's border: each of its clips is then tried alone, inside `contain`
        if any(context.attempts.is_withdrawn(each.clip.key, each.number) for each in attempts):
            raise
        clips = ", ".join(each.clip.clip_id for each in attempts)
        if context.ranks.shares_clips:
            raise GroupLostError(f"clips {clips} together: {error!r}; each is rendered alone next time") from error
        log_event(_LOG, "batch_broken", level=logging.WARNING, clips=clips, error=repr(error))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def write_failure(attempt: Attempt, context: JobContext, error: BaseException, *, number: int | None = None) -> Failed:
    """Writes a clip's failure to the bucket and returns it as a value. If several ranks do so, the first one's file stays.

    `number`: the failure's number; by default the attempt's. A ValueError is in the row itself and would occur on every
    node: then the default is the last allowed number, so that the clip is not tried again.
    """
    if number is None:
        final = isinstance(error, ValueError)
        number = max(attempt.number, context.settings.render.max_attempts) if final else attempt.number
    failed = Failed(
        clip_id=attempt.clip.clip_id,
        digest=attempt.clip.digest,
        stage=attempt.stages.current,
        error=type(error).__name__,
        message=str(error) or repr(error),
    )
    failure = {
        "schema": layout.SCHEMA,
        "clip_id": failed.clip_id,
        "digest": failed.digest,
        "attempt": attempt.number,
        "stage": failed.stage,
        "error": failed.error,
        "message": failed.message,
        "traceback": "".join(traceback.format_exception(error)),
        "seconds": attempt.stages.seconds,
        "started_at": attempt.started_at,
        "failed_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "job": context.facts(),
        "versions": versions(),
    }
    context.bucket.create_json(layout.failure(attempt.clip.key, number), failure)
    context.attempts.end(attempt.clip.key, attempt.number)
    log_event(
        _LOG, "clip_failed", level=logging.ERROR, clip=failed.clip_id, stage=failed.stage, error=failed.error,
        message=failed.message, attempt=attempt.number,
    )  # fmt: skip
    return failed
