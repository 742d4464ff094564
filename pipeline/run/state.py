"""How far a run is, read from its bucket alone: no SLURM, no Dask, no driver."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from jobs.render_settings import MAX_ATTEMPTS
from jobs.store import layout
from jobs.store.bucket import Bucket, DamagedError
from jobs.store.history import is_given_up
from pipeline.exits import Exit
from pipeline.run.jobs_file import attempts_allowed

SHOWN_FAILURES = 20
MOST_ASKED = 2_000
"""Clips that are asked for one by one at the end of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The clips of a run by where they stand; keys are `<clip_id>.<digest>`.

    `failed` ended with an error as often as a clip may; `quarantined` killed their group so often, and a failure says so:
    neither is started again. `again`: failed, and will be tried once more on another node; `tries`: how often those were
    tried. `started` have a mark and no end yet: they run, in whichever attempt, or their job was killed.
    """

    recorded: frozenset[str]
    failed: frozenset[str]
    quarantined: frozenset[str]
    again: frozenset[str]
    started: frozenset[str]
    tries: Mapping[str, int] = field(default_factory=dict)

    @property
    def not_rendered(self) -> frozenset[str]:
        """Clips that wait for `retry`."""
        return self.failed | self.quarantined


_NONE: frozenset[str] = frozenset()
NOTHING_KNOWN = Progress(recorded=_NONE, failed=_NONE, quarantined=_NONE, again=_NONE, started=_NONE)


def read_progress(
    bucket: Bucket, keys: Collection[str] | None, max_attempts: int | None = None, *, settled: bool = False
) -> Progress:
    """Lists records, failures and attempts. Raises BucketError.

    `keys`: those of the manifest, as `run_keys` reads them; what else lies in the bucket does not count. None where a submit
    was cut off before it wrote them. `max_attempts`: None for what the latest submit said. `settled`: the jobs have ended, so
    each clip that no list tells of is asked for by name (some stores list what was written only later).
    """
    if max_attempts is None:
        max_attempts = attempts_allowed(bucket)
    attempts, failures = bucket.attempts(), bucket.failures()
    # Last, so that a clip which ends meanwhile counts as ended.
    recorded = bucket.recorded_keys()
    if keys is not None:
        attempts, failures = _of(keys, attempts), _of(keys, failures)
        recorded.intersection_update(keys)
    if settled and keys is not None:
        untold = [key for key in keys if key not in recorded and not is_given_up(failures.get(key, ()), max_attempts)]
        for key, history in bucket.histories(untold[:MOST_ASKED]).items():
            attempts[key], failures[key] = list(history.attempts), list(history.failures)
            recorded |= {key} if history.recorded else set()
        attempts = {key: numbers for key, numbers in attempts.items() if numbers}
        failures = {key: numbers for key, numbers in failures.items() if numbers}
    return _progress(frozenset(recorded), attempts, failures, max_attempts)


def _of(keys: Collection[str], found: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {key: numbers for key, numbers in found.items() if key in keys}


def _progress(
    recorded: frozenset[str], attempts: Mapping[str, list[int]], failures: Mapping[str, list[int]], max_attempts: int
) -> Progress:
    killed = {
        key: len(set(numbers) - set(failures.get(key, ()))) for key, numbers in attempts.items() if key not in recorded
    }
    quarantined = frozenset(
        key for key, count in killed.items()
        if count >= max_attempts and is_given_up(failures.get(key, ()), max_attempts)
    )  # fmt: skip
    unrecorded = {key: numbers for key, numbers in failures.items() if key not in recorded and key not in quarantined}
    failed = frozenset(key for key, numbers in unrecorded.items() if is_given_up(numbers, max_attempts))
    again = frozenset(unrecorded) - failed
    started = frozenset(key for key, count in killed.items() if count) - failed - quarantined
    tries = {key: max(unrecorded[key]) for key in again}
    return Progress(
        recorded=recorded, failed=failed, quarantined=quarantined, again=again, started=started, tries=tries
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedClip:
    """Why a clip has no video."""

    clip_id: str
    stage: str
    error: str
    message: str
    attempt: int
    path: str = ""
    """Of the file that says so."""
    log: str | None = None
    """The path of the log that tells of it."""
    job: str | None = None
    started_at: str | None = None
    failed_at: str | None = None

    def __str__(self) -> str:
        return f"{self.clip_id}: {self.error} in {self.stage}: {self.message}"


def failed_clips(bucket: Bucket, progress: Progress, limit: int = SHOWN_FAILURES) -> list[FailedClip]:
    """Reads why clips have no video: the latest failure of each, at most `limit` of them."""
    failures = bucket.failures()
    keys = [*sorted(progress.failed), *sorted(progress.quarantined)][:limit]
    # A `retry` meanwhile takes failures away.
    return [_failed_clip(bucket, key, max(failures.get(key, (MAX_ATTEMPTS,)))) for key in keys]


def _failed_clip(bucket: Bucket, key: str, attempt: int) -> FailedClip:
    try:
        document, said = bucket.read_json(layout.failure(key, attempt)), "its failure file does not say"
    except FileNotFoundError:
        document, said = {}, "its failure file is gone"
    except DamagedError as error:
        document, said = {}, f"its failure file is damaged: {error}"
    number, job = document.get("attempt", attempt), document.get("job", {})
    return FailedClip(
        clip_id=clip_id(key),
        stage=str(document.get("stage", "?")),
        error=str(document.get("error", "?")),
        message=str(document.get("message", said)),
        attempt=number if isinstance(number, int) else attempt,
        path=layout.failure(key, attempt),
        log=layout.log_of(job),
        job=layout.job_of(job),
        started_at=document.get("started_at"),
        failed_at=document.get("failed_at"),
    )


def clip_id(key: str) -> str:
    """Returns the clip's id from its key `<clip_id>.<digest>`."""
    return key.rpartition(".")[0]


def exit_code(num_clips: int, progress: Progress) -> Exit:
    """Returns 0 when all clips are rendered, 3 when some failed, 1 when some are still to be rendered."""
    if progress.not_rendered:
        return Exit.CLIPS_FAILED
    return Exit.OK if len(progress.recorded) >= num_clips else Exit.ERROR


def keys_of(clip_ids: Iterable[str], keys: Iterable[str]) -> set[str]:
    """Returns the keys that belong to these clip ids."""
    wanted = set(clip_ids)
    return {key for key in keys if clip_id(key) in wanted}
