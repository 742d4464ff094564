"""Submits of one run take turns while they plan it and hand it over, also where the store creates nothing exclusively.

A submit writes a claim, then lists all claims. Whoever sees another one takes its own back, waits and tries again. So of two
submits at least one sees the other, and never do both go on. The claim of a submit that was killed no longer changes: it is
removed by the next one, after a time.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError, DamagedError
from pipeline.exits import RefusedError
from pipeline.screen import Screen

BEAT_S = 15.0
"""How often a claim is renewed."""
DEAD_S = 60.0
"""A claim that has not changed for so long, by the clock of the submit that waits, is of a dead one."""
PATIENCE_S = 1800.0
WAIT_S = 1.0
_PLANNING, _DRIVING = "submit-", "driver-"


class Claim:
    """One submit's claim on a run, renewed by a thread until it is released. `name`: in the folder of claims."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket = bucket
        self._path = layout.claim(name)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="claim", daemon=True)

    @property
    def name(self) -> str:
        """Its name in the folder of claims."""
        return self._path.rpartition("/")[2]

    def write(self, beat: int = 0) -> None:
        """Writes it. Raises BucketError."""
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "beat": beat}
        self._bucket.write_json(self._path, facts)

    def take_back(self) -> None:
        """Removes it. Raises BucketError."""
        self._bucket.remove(self._path)

    def hold(self) -> None:
        """Keeps it alive from now on."""
        self._thread.start()

    def release(self) -> None:
        """Lets the next submit go on. Raises nothing: a claim that stays is found dead by the next one."""
        if self._released.is_set():
            return
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self.take_back()
        except BucketError:
            return

    def _renew(self) -> None:
        beat = 0
        while not self._released.wait(BEAT_S):
            beat += 1
            try:
                self.write(beat)
            except BucketError:
                continue


@contextmanager
def claimed(
    bucket: Bucket, screen: Screen, *, dead_s: float = DEAD_S, patience_s: float = PATIENCE_S
) -> Iterator[Claim]:
    """Yields the claim when no other submit is planning this run; releases it at the end if that was not done before.

    Raises RefusedError when another submit holds its claim for longer than `patience_s`, BucketError.
    """
    claim = Claim(bucket, f"{_PLANNING}{uuid.uuid4().hex}.json")
    others = _Others(bucket, _PLANNING, dead_s)
    end, told = time.monotonic() + patience_s, False
    try:
        while True:
            claim.write()
            alive = list(others.alive(except_for=claim.name).values())
            if not alive:
                break
            claim.take_back()
            if not told:
                screen.note(f"another submit ({alive[0]}) is planning this run; this one waits for it")
                told = True
            if time.monotonic() > end:
                raise RefusedError(
                    f"another submit ({alive[0]}) has been planning the run in {bucket.url} for {patience_s:.0f} s; wait for "
                    "it or end it, then submit again"
                )
            time.sleep(random.uniform(WAIT_S / 2, WAIT_S))
        claim.hold()
        yield claim
    finally:
        claim.release()


@contextmanager
def driving(bucket: Bucket, submit_id: str) -> Iterator[None]:
    """Says, as long as the body runs, that a submit's driver lives. A bucket that is away is told at a later beat."""
    claim = Claim(bucket, f"{_DRIVING}{submit_id}.json")
    with suppress(BucketError):
        claim.write()
    claim.hold()
    try:
        yield
    finally:
        claim.release()


def driver_claims(bucket: Bucket, screen: Screen) -> dict[str, str]:
    """Returns the drivers of a run that live, as text, by the id of their submit; removes the claims of dead ones.

    A driver on another machine is watched until its claim is renewed, or for `DEAD_S`. Raises BucketError.
    """
    others = _Others(bucket, _DRIVING, DEAD_S)
    unsure, told = others.alive(), False
    while any(not others.is_sure(name) for name in unsure):
        if not told:
            screen.note(f"looking whether {', '.join(unsure.values())} is still at work on this run")
            told = True
        time.sleep(WAIT_S)
        unsure = others.alive()
    return {name.removeprefix(_DRIVING).removesuffix(".json"): who for name, who in unsure.items()}


def seen_drivers(bucket: Bucket) -> list[str]:
    """Returns the drivers of a run that live as far as one look tells, as text. Raises BucketError."""
    return list(_Others(bucket, _DRIVING, DEAD_S).alive().values())


class _Others:
    """The claims of others, and since when each has been as it is, by our own clock."""

    def __init__(self, bucket: Bucket, prefix: str, dead_s: float) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._dead_s = dead_s
        self._seen: dict[str, tuple[object, float]] = {}
        self._sure: set[str] = set()

    def alive(self, *, except_for: str = "") -> dict[str, str]:
        """Returns who holds the claims of others, as text, by name; removes dead claims. Raises BucketError."""
        names = [name for name in self._bucket.names("claims") if name.startswith(self._prefix) and name != except_for]
        return {name: who for name in sorted(names) if (who := self._holder(name)) is not None}

    def is_sure(self, name: str) -> bool:
        """Whether the holder is known to live: its process is on this machine, or its claim was seen renewed."""
        return name in self._sure

    def _holder(self, name: str) -> str | None:
        path = layout.claim(name)
        try:
            found = self._bucket.read_json(path)
        except FileNotFoundError:
            return None
        except DamagedError:
            found = {}
        host, pid = found.get("host"), found.get("pid")
        beat = (host, pid, found.get("beat"))
        known, since = self._seen.get(name, (None, 0.0))
        if known != beat:
            if known is not None:
                self._sure.add(name)
            self._seen[name] = (beat, time.monotonic())
        elif time.monotonic() - since > self._dead_s:
            self._bucket.remove(path)
            return None
        if host == socket.gethostname() and isinstance(pid, int):
            if _started(pid) is None or _started(pid) != found.get("started"):
                self._bucket.remove(path)
                return None
            self._sure.add(name)
        return f"process {pid} on {host}"


def _started(pid: int) -> int | None:
    """Returns when a process began, in ticks since the boot, for ids repeat; None if there is no such process here."""
    try:
        # The name, in brackets, may hold anything; the start is the 20th field after it.
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
