"""Writes into the bucket that a clip killed its group too often, if no start of its job is left to do so."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from jobs.store import layout
from jobs.store.bucket import Bucket
from jobs.store.history import is_given_up


def write_quarantined(bucket: Bucket, keys: Iterable[str], max_attempts: int) -> set[str]:
    """Writes a failure for clips whose last start died with them, as their job's next start would; returns their keys.

    No job may be at work on them: a clip in its last attempt looks the same. Raises BucketError.
    """
    written = set()
    for key, history in bucket.histories(keys).items():
        if history.recorded or is_given_up(history.failures, max_attempts) or not history.is_given_up(max_attempts):
            continue
        clip_id, _, digest = key.rpartition(".")
        number = history.next_attempt
        failure = {
            "schema": layout.SCHEMA,
            "clip_id": clip_id,
            "digest": digest,
            "attempt": number - 1,
            "stage": "quarantine",
            "error": "GroupKilledError",
            "message": history.killed_text,
            "traceback": "",
            "seconds": {},
            "failed_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        bucket.create_json(layout.failure(key, number), failure)
        written.add(key)
    return written
