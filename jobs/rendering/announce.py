"""Brings news of a job's clips to the progress listener on rank 0, also from replicas on other ranks."""

from __future__ import annotations

import json
import threading
from typing import Self

from jobs.progress import OpenProgress
from jobs.rendering.group import JobRanks

_POLL_S = 0.5


class Announcer:
    """Announces when clips start and finish. `progress`: the listener on rank 0; None on other ranks.

    Rank 0 also passes on what other replicas announce. Their news go through the rendezvous store, so no rank ever waits for
    another. Safe to use from several threads; the listener gets one call at a time.
    """

    def __init__(self, ranks: JobRanks, progress: OpenProgress | None) -> None:
        self._store = ranks.store
        self._replica = ranks.node.dp.rank
        self._others = [replica for replica in range(ranks.node.dp.size) if replica != self._replica]
        self._speaks = ranks.node.is_clip_root and self._replica > 0
        self._progress = progress
        self._lock = threading.Lock()
        self._told = 0
        self._heard = dict.fromkeys(self._others, 0)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="announcer", daemon=True)

    def started(self, clip_id: str) -> None:
        """Announces that the clip's denoising begins."""
        self._tell(["started", clip_id])

    def finished(self, clip_id: str, outcome: str, elapsed_s: float) -> None:
        """Announces how a clip ended: "rendered" or "failed"."""
        self._tell(["finished", clip_id, outcome, elapsed_s])

    def __enter__(self) -> Self:
        if self._progress is not None and self._others:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _tell(self, news: list[str | float]) -> None:
        with self._lock:
            if self._progress is not None:
                self._pass_on(news)
            elif self._speaks and self._store is not None:
                self._store.set(_key(self._replica, self._told), json.dumps(news))
                self._told += 1

    def _pass_on(self, news: list[str | float]) -> None:
        assert self._progress is not None, "only rank 0 has a listener"
        word, clip_id, *rest = news
        if word == "started":
            self._progress.started(str(clip_id))
        else:
            self._progress.finished(str(clip_id), str(rest[0]), float(rest[1]))

    def _listen(self) -> None:
        last = False
        while not last:
            # One more round after the end, for news from just before it.
            last = self._end.wait(_POLL_S)
            for replica in self._others:
                self._hear(replica)

    def _hear(self, replica: int) -> None:
        assert self._store is not None, "several replicas have met at a store"
        while self._store.check([_key(replica, self._heard[replica])]):
            news = json.loads(self._store.get(_key(replica, self._heard[replica])))
            self._heard[replica] += 1
            with self._lock:
                self._pass_on(news)


def _key(replica: int, number: int) -> str:
    return f"clip-news/{replica}/{number}"
