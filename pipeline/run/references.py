"""References that a manifest names, read when it is accepted: many at once, each URL once, none from a store that is away."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from jobs.media.reference_access import ReferenceAccess, UnusableReferenceError
from jobs.media.reference_files import fetch_reference, reference_stamp
from jobs.store import layout
from jobs.store.bucket import Bucket
from jobs.store.retry import RetryPolicy
from manifests.references import SeenReference

PARALLEL_READS = 16
RETRY_POLICY = RetryPolicy(total_s=10.0, operation_s=20.0)
MOST_TIMES_AWAY = 3
"""A store that left so many references without an answer is not asked for more: each would take as long again."""
_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownReference:
    """What a run keeps of a reference that was read for it. `stamp`: size, times or ETag, as its store gave them."""

    stamp: str
    sha256: str
    num_frames: int


class ReferenceReader:
    """Reads references by URL, for `manifests.accept`. What was read is remembered: rows often share references.

    `access`: what they may name. `known`: by URL, what an earlier submit has read; a file whose stamp is still the same is
    not read again.
    """

    def __init__(
        self,
        access: ReferenceAccess,
        retry_policy: RetryPolicy = RETRY_POLICY,
        *,
        known: Mapping[str, KnownReference] | None = None,
    ) -> None:
        self._access = access
        self._retry_policy = retry_policy
        self.known = dict(known or {})
        self._seen: dict[str, SeenReference | str] = {}
        self._away: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, urls: Sequence[str]) -> Mapping[str, SeenReference | str]:
        """Returns what is known of each reference, or why it cannot be used."""
        new = [url for url in urls if url not in self._seen]
        if len(self._seen) + len(new) > _REMEMBERED:
            new, self._seen = list(urls), {}
        if new:
            with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="read-references") as pool:
                self._seen.update(zip(new, pool.map(self._read, new), strict=True))
        return {url: self._seen[url] for url in urls}

    def _read(self, url: str) -> SeenReference | str:
        try:
            protocol = self._access.protocol(url)
        except UnusableReferenceError as error:
            return str(error)
        store = f"{protocol}://{'' if protocol == 'file' else url.partition('://')[2].partition('/')[0]}"
        if self._away.get(store, 0) >= MOST_TIMES_AWAY:
            return f"{store} gave no answer {MOST_TIMES_AWAY} times, so this one was not tried"
        stamp = reference_stamp(url, self._access, self._retry_policy)
        known = self.known.get(url)
        if known is not None and known.stamp == stamp:
            return SeenReference(sha256=known.sha256, num_frames=known.num_frames)
        try:
            reference = fetch_reference(url, self._access, self._retry_policy)
        except UnusableReferenceError as error:
            if error.away:
                with self._lock:
                    self._away[store] = self._away.get(store, 0) + 1
            return str(error)
        if stamp is not None:
            self.known[url] = KnownReference(stamp=stamp, sha256=reference.sha256, num_frames=reference.num_frames)
        return SeenReference(sha256=reference.sha256, num_frames=reference.num_frames)


def known_references(bucket: Bucket) -> dict[str, KnownReference]:
    """Returns what earlier submits of a run have read. Raises BucketError."""
    try:
        kept = bucket.read_json(layout.REFERENCES)
    except FileNotFoundError:
        return {}
    return {url: KnownReference(**facts) for url, facts in kept["references"].items()}


def keep_references(bucket: Bucket, known: Mapping[str, KnownReference]) -> None:
    """Keeps what was read for the next submit of the run. Raises BucketError."""
    facts = {url: asdict(reference) for url, reference in known.items()}
    bucket.write_json(layout.REFERENCES, {"schema": layout.SCHEMA, "references": facts})
