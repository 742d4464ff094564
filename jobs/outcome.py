"""What comes back from a job: values, never exceptions (submitit carries exceptions as strings)."""

from __future__ import annotations

from dataclasses import dataclass

from manifests.clip import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The clip's video and record are in the bucket. `elapsed_s` is the wall time from attempt mark to record."""

    clip_id: str
    digest: str
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The clip ended with an error, in this start or an earlier one; a failure file in the bucket describes it.

    `stage` is e.g. "denoise" or "upload"; "quarantine" for a clip that killed its group too often.
    """

    clip_id: str
    digest: str
    stage: str
    error: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """The clip was left out; `reason` says why, e.g. "recorded"."""

    clip_id: str
    digest: str
    reason: str


def skipped(clip: Clip) -> Skipped:
    """Returns the outcome of a clip that has a record already."""
    return Skipped(clip_id=clip.clip_id, digest=clip.digest, reason="recorded")


ClipOutcome = Rendered | Failed | Skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOutcome:
    """What one job did. `attempt` is how often SLURM had restarted it, which marks stale results of an earlier start.

    `clips`: in the shard's order, also those that an earlier start ended. `left`: ids of clips that were not begun
    because the job's time would not have been enough, or because they failed once and are for another node; submitting
    again renders them.
    """

    shard: int
    attempt: int
    clips: tuple[ClipOutcome, ...]
    left: tuple[str, ...] = ()
