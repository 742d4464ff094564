"""One run under faults: its manifest, its submits, its processes, and its way to an end within a deadline."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults import poison
from tests.faults.books import Books, Ledger
from tests.faults.world import BUCKET, POISON, World

FINISH_S = 900.0
"""How long a run may take to its end after its last fault."""
_QUIET_S = 240.0
_HANG_S = "60"
_CLIPS = (14, 20)
YIELDS_NAN = "clip yields NaN"
POISONS: Mapping[str, int | None] = MappingProxyType({
    YIELDS_NAN: None,  # by a word of its prompt
    "clip crashes its rank": poison.CRASHES,
    "clip hangs": poison.HANGS,
    "clip exhausts memory": poison.EXHAUSTS_MEMORY,
})  # fmt: skip
"""What a clip of the manifest can be made to do, and by which seed."""
_MESHES = (("1", "1", "auto"), ("1", "2", "cfg=2"), ("2", "1", "sp=2"), ("1", "2", "dp=2"))


class StuckError(Exception):
    """A run did not come to its end in time; the message says where it stood."""


@dataclass(slots=True, kw_only=True)
class Run:
    """A run that is under way. `poisoned`: its clips that can never be rendered, and what each does instead."""

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

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/run{self.number}"

    @property
    def is_complete(self) -> bool:
        return self.ledger.look() >= len(self.clip_ids) - len(self.poisoned)

    def submit(self) -> None:
        """Starts one more driver."""
        self.submits += 1
        log = self.world.folder / f"run{self.number}-{self.submits}.json"
        words = ("submit", str(self.manifest), "--output", self.url, "--weights", str(self.world.weights))
        self.drivers.append(self.world.pipeline(*words, *self.flags, log=log))

    def running_drivers(self) -> list[subprocess.Popen[bytes]]:
        return [driver for driver in self.drivers if driver.poll() is None]

    def ranks(self) -> list[int]:
        """Process ids of the ranks that work now, of this world."""
        return self._processes(b"submitit.core._submit")

    def dask(self) -> list[int]:
        return self._processes(b"cluster.dask_scheduler")

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
        """Submits, and lets failed clips be tried again, until nothing is left; then checks the books. Raises StuckError."""
        end = time.monotonic() + FINISH_S
        while True:
            if not self.wait_for(lambda: not self.running_drivers(), timeout_s=max(0.0, end - time.monotonic())):
                raise StuckError(
                    f"{self.url}: a driver still runs {FINISH_S:.0f} s after the last fault\n{self.said()}"
                )
            code = self.drivers[-1].returncode
            if self.is_complete and code in (0, 3):
                break
            if code in (2, 4):
                raise StuckError(f"{self.url}: submit ended with {code}\n{self.said()}")
            if time.monotonic() > end:
                raise StuckError(f"{self.url}: not complete {FINISH_S:.0f} s after the last fault\n{self.said()}")
            if code == 3:
                self._retry()
            self.submit()
        self._await_quiet()
        return self.ledger.close(self.clip_ids)

    def end(self) -> None:
        """Ends whatever still runs."""
        for driver in self.running_drivers():
            driver.kill()
            driver.wait()
        if self.world.slurm:
            self.world.slurm.end_jobs()
        for pid in self.ranks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def said(self) -> str:
        """Returns the ends of what the last drivers said."""
        logs = sorted(self.world.folder.glob(f"run{self.number}-*.err"), key=lambda log: log.stat().st_mtime)[-3:]
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def _await_quiet(self) -> None:
        # Jobs of a driver that was killed may still be at work: what they write belongs into the books.
        slurm = self.world.slurm

        def quiet() -> bool:
            return not self.ranks() and not (slurm and slurm.run("squeue", "--noheader").strip())

        if not self.wait_for(quiet, timeout_s=_QUIET_S):
            raise StuckError(f"{self.url}: jobs still run {_QUIET_S:.0f} s after the last driver ended\n{self.said()}")

    def _retry(self) -> None:
        # Not the poisoned ones: each would be tried as often as before, and end as before.
        failed = self.ledger.failed() - set(self.poisoned)
        if failed:
            self._command("retry", self.url, *(word for name in sorted(failed) for word in ("--clip", name)))

    def _command(self, *words: str) -> None:
        log = self.world.folder / f"run{self.number}-{words[0]}.json"
        self.world.pipeline(*words, log=log).wait(60)

    def _processes(self, module: bytes) -> list[int]:
        folder = str(self.world.folder).encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"python" in words[0] and module in words and any(word.startswith(folder) for word in words):
                    found.append(int(path.parent.name))
        return sorted(found)


def start_run(world: World, rng: random.Random, *, number: int, cluster: str, poisons: Sequence[str]) -> Run:
    """Writes a manifest of a few clips of a second or two each and submits it. `poisons`: names in `POISONS`."""
    num_clips = rng.randint(*_CLIPS)
    clip_ids = [f"c{index}" for index in range(num_clips)]
    poisoned = dict(zip(rng.sample(clip_ids, len(poisons)), poisons, strict=True))
    manifest = world.folder / f"run{number}.parquet"
    rows = {
        "clip_id": clip_ids,
        "prompt": [
            f"a red circle {POISON if poisoned.get(name) == YIELDS_NAN else 'moving left'}" for name in clip_ids
        ],
        "seed": [POISONS.get(poisoned.get(name, "")) or rng.randrange(1 << 24) for name in clip_ids],
        "num_frames": [8] * num_clips,
        "height": [32] * num_clips,
        "width": [32] * num_clips,
        "num_steps": [rng.randint(40, 100) for _ in clip_ids],
    }
    pq.write_table(pa.table(rows), manifest)
    nodes, gpus, mesh = rng.choice(_MESHES)
    flags = (
        "--cluster", cluster, "--device", "cpu", "--no-baseline", "--json", "--job-minutes", "5", "--hang-seconds", _HANG_S,
        "--max-parallel-jobs", "2", "--nodes-per-job", nodes, "--gpus-per-node", gpus, "--mesh", mesh,
    )  # fmt: skip
    run = Run(
        world=world, rng=rng, number=number, cluster=cluster, clip_ids=clip_ids, poisoned=poisoned, manifest=manifest,
        flags=flags, ledger=Ledger(world.s3, f"s3://{BUCKET}/run{number}"),
    )  # fmt: skip
    run.submit()
    return run
