"""What comes back from a job: values, never exceptions (submitit carries exceptions as strings)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The clip's video and record are in the bucket. `elapsed_s` is the wall time from attempt mark to record."""

    clip_id: str
    digest: str
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The clip ended with an error that a failure file in the bucket tells. `stage` is e.g. "denoise" or "upload"."""

    clip_id: str
    digest: str
    stage: str
    error: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """The clip was left out: recorded already, or quarantined. `reason` says which."""

    clip_id: str
    digest: str
    reason: str


ClipOutcome = Rendered | Failed | Skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOutcome:
    """What one job did. `attempt` is how often SLURM had restarted it (stale results of an earlier start are told by it)."""

    shard: int
    attempt: int
    clips: tuple[ClipOutcome, ...]
