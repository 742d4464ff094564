"""One run under faults: its manifest, its submits, its processes, and its way to an end within a deadline."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from tests.faults import poison
from tests.faults.books import Books, Ledger
from tests.faults.world import BUCKET, World

FINISH_S = 900.0
"""How long a run may take to its end after its last fault."""
_QUIET_S = 240.0
YIELDS_NAN = "clip yields NaN"
POISONS: Mapping[str, int | None] = MappingProxyType({
    YIELDS_NAN: None,  # by a word of its prompt
    "clip crashes its rank": poison.CRASHES,
    "clip hangs": poison.HANGS,
    "clip exhausts memory": poison.EXHAUSTS_MEMORY,
})  # fmt: skip
"""What a clip of the manifest can be made to do, and by which seed."""
NO_CONDITIONS = "store without conditions"
TWO_MANIFESTS = "two manifests at once"
FROM_THE_START = (*POISONS, NO_CONDITIONS, TWO_MANIFESTS)
"""Faults that come with a run, not while it is under way."""


class StuckError(Exception):
    """A run did not come to its end in time; the message says where it stood."""


@dataclass(slots=True, kw_only=True)
class Run:
    """A run that is under way. `poisoned`: its clips that can never be rendered, and what each does instead.

    `refused`: clips of a manifest that was not taken. `broken`: promises that a fault found broken. `story`: what was done
    to the run, and when.
    """

    world: World
    rng: random.Random
    number: int
    cluster: str
    clip_ids: list[str]
    poisoned: dict[str, str]
    manifest: Path
    flags: tuple[str, ...]
    ledger: Ledger
    drivers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    submits: int = 0
    refused: tuple[str, ...] = ()
    broken: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/run{self.number}"

    @property
    def is_complete(self) -> bool:
        return self.ledger.look() >= len(self.clip_ids) - len(self.poisoned)

    def note(self, text: str) -> None:
        """Adds to the story."""
        self.story.append(f"{time.monotonic() - self.began_s:6.1f} s  {text}")

    def submit(self) -> None:
        """Starts one more driver."""
        self.drivers.append(self.start_submit(self.manifest))

    def start_submit(self, manifest: Path) -> subprocess.Popen[bytes]:
        """Starts a submit of any manifest to the run's output."""
        self.submits += 1
        log = self.world.folder / f"run{self.number}-{self.submits}.json"
        words = ("submit", str(manifest), "--output", self.url, "--weights", str(self.world.weights))
        return self.world.pipeline(*words, *self.flags, log=log)

    def command(self, *words: str, timeout_s: float = 90.0) -> int:
        """Runs another command of the program and returns its exit code; -1 if it does not end in time."""
        log = self.world.folder / f"run{self.number}-{words[0]}-{len(self.story)}.json"
        process = self.world.pipeline(*words, log=log)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return -1

    def running_drivers(self) -> list[subprocess.Popen[bytes]]:
        return [driver for driver in self.drivers if driver.poll() is None]

    def ranks(self) -> list[int]:
        """Process ids of the ranks that work now, of this world."""
        return self._processes(b"submitit.core._submit")

    def dask(self) -> list[int]:
        return self._processes(b"cluster.dask_scheduler")

    def ranks_on(self, node: str) -> list[int]:
        """Process ids of the ranks that work on a node of SLURM."""
        name = f"SLURMD_NODENAME={node}".encode()
        found = []
        for pid in self.ranks():
            with contextlib.suppress(OSError):
                if name in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def stopped(self) -> list[int]:
        """Process ids of this world's ffmpegs."""
        return [pid for pid, words in self._mine() if any(word.endswith(b"ffmpeg") for word in words[:2])]

    def wait(self, seconds: float) -> None:
        """Lets the run go on, looking at its records meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.ledger.look()
            time.sleep(min(0.3, max(0.0, end - time.monotonic())))

    def wait_for(self, condition: Callable[[], object], *, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                return False
            self.wait(0.2)
        return True

    def finish(self) -> Books:
        """Submits, and lets failed clips be tried again, until nothing is left; then checks the books. Raises StuckError.

        When all is recorded and quiet it submits once more: this one finds what was damaged, and writes plain names that are
        missing.
        """
        end, settled = time.monotonic() + FINISH_S, False
        self.note("no more faults")
        while True:
            if not self.wait_for(lambda: not self.running_drivers(), timeout_s=max(0.0, end - time.monotonic())):
                raise StuckError(
                    f"{self.url}: a driver still runs {FINISH_S:.0f} s after the last fault\n{self.said()}"
                )
            code = self.drivers[-1].returncode
            self.note(f"the last submit ended with {code}")
            if self.is_complete and code in (0, 3):
                self._await_quiet()
                if settled:
                    break
                settled = True
            else:
                settled = False
            if code in (2, 4):
                raise StuckError(f"{self.url}: submit ended with {code}\n{self.said()}")
            if time.monotonic() > end:
                raise StuckError(f"{self.url}: not complete {FINISH_S:.0f} s after the last fault\n{self.said()}")
            if code == 3 and not settled:
                self._retry()
            self.submit()
        books = self.ledger.close(self.clip_ids, refused=self.refused)
        books.broken += self.broken
        return books

    def end(self) -> None:
        """Ends whatever still runs."""
        for driver in self.running_drivers():
            driver.kill()
            driver.wait()
        if self.world.slurm:
            self.world.slurm.end_jobs()
        for pid in [*self.ranks(), *self.stopped()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.world.proxy.calm()

    def said(self) -> str:
        """Returns the ends of what the last drivers said."""
        logs = sorted(self.world.folder.glob(f"run{self.number}-*.err"), key=lambda log: log.stat().st_mtime)[-3:]
        told = [f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs]
        return "\n".join(["--- what was done", *self.story, *told])

    def keep_logs(self, folder: Path) -> None:
        """Copies what the run said, and SLURM, to a folder that outlives the world."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "story.txt").write_text("\n".join(self.story) + "\n")
        logs = [*self.world.folder.glob(f"run{self.number}-*"), *self.world.folder.glob("slurm/log/slurm*.log")]
        for log in logs:
            with contextlib.suppress(OSError):
                shutil.copy(log, folder)
        for job in self.world.work.glob("runs/.jobs/*"):
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(job, folder / "jobs" / job.name, dirs_exist_ok=True)

    def _await_quiet(self) -> None:
        # Jobs of a driver that was killed may still be at work: what they write belongs into the books.
        slurm = self.world.slurm

        def quiet() -> bool:
            if self.ranks() or not self.world.proxy.is_calm:
                return False
            return not (slurm and slurm.run("squeue", "--noheader").strip())

        if not self.wait_for(quiet, timeout_s=_QUIET_S):
            raise StuckError(f"{self.url}: jobs still run {_QUIET_S:.0f} s after the last driver ended\n{self.said()}")

    def _retry(self) -> None:
        # Not the poisoned ones: each would be tried as often as before, and end as before.
        failed = self.ledger.failed() - set(self.poisoned)
        if failed:
            self.note(f"retry of {', '.join(sorted(failed))}")
            self.command("retry", self.url, *(word for name in sorted(failed) for word in ("--clip", name)))

    def _processes(self, module: bytes) -> list[int]:
        return [pid for pid, words in self._mine() if b"python" in words[0] and module in words]

    def _mine(self) -> list[tuple[int, list[bytes]]]:
        """Returns the processes whose command line names this world's folder, with their words."""
        folder = str(self.world.folder).encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if any(folder in word for word in words):
                    found.append((int(path.parent.name), words))
        return sorted(found)
