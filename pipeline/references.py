"""References that a manifest names, read when it is accepted: many at once, each URL once, none from a store that is away."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from jobs.patience import Patience
from jobs.reference_files import UnusableReferenceError, fetch_reference
from manifests.references import SeenReference

PARALLEL_READS = 16
PATIENCE = Patience(total_s=10.0, operation_s=20.0)
MOST_TIMES_AWAY = 3
"""A store that left so many references without an answer is not asked for more: each would take as long again."""
_REMEMBERED = 100_000


class ReferenceReader:
    """Reads references by URL, for `manifests.accept`. What was read is remembered: rows often share references."""

    def __init__(self, patience: Patience = PATIENCE) -> None:
        self._patience = patience
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
        parts = urlsplit(url)
        store = f"{parts.scheme}://{parts.netloc}"
        if self._away.get(store, 0) >= MOST_TIMES_AWAY:
            return f"{store} gave no answer {MOST_TIMES_AWAY} times, so this one was not tried"
        try:
            reference = fetch_reference(url, self._patience)
        except UnusableReferenceError as error:
            if error.away:
                with self._lock:
                    self._away[store] = self._away.get(store, 0) + 1
            return str(error)
        return SeenReference(sha256=reference.sha256, num_frames=reference.num_frames)
