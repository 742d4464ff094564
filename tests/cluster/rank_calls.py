"""What test jobs run on their ranks. Light imports only: every rank of every test imports this file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import submitit

from cluster.dask_progress import DaskProgress


def rank() -> int:
    return int(submitit.JobEnvironment().global_rank)


def note(folder: Path, name: str, text: str = "") -> None:
    part = folder / f".{name}.{os.getpid()}"
    part.write_text(text)
    part.rename(folder / name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """Rank 0 returns `value`; every rank leaves a file with what it sees."""

    folder: Path
    value: object = None
    tag: str = "job"
    sleep_s: float = 0.0

    def __call__(self) -> object:
        environment = submitit.JobEnvironment()
        start = time.time()
        time.sleep(self.sleep_s)
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "SLURMD_NODENAME")
        seen = {name: os.environ.get(name) for name in names}
        seen |= {"world": environment.num_tasks, "rank": rank(), "local_rank": environment.local_rank}
        seen |= {"start": start, "end": time.time()}
        note(self.folder, f"{self.tag}-{rank()}", repr(seen))
        return (self.value, rank())


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondStart:
    """In the first start rank 0 returns at once if `early`, and all others wait; in the second all return their attempt."""

    folder: Path
    early: bool

    def __call__(self) -> object:
        attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        note(self.folder, f"start-{attempt}-{rank()}", os.environ.get("SLURM_JOB_NODELIST", ""))
        if attempt == 0 and not (self.early and rank() == 0):
            time.sleep(600)
        return attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class EndWithoutResult:
    """Every rank ends with exit code 0 and leaves no result."""

    def __call__(self) -> object:
        os._exit(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowClips:
    """Rank 0 tells the dashboard of clips of half a second each until `folder` holds a file named stop."""

    folder: Path
    progress: DaskProgress

    def __call__(self) -> object:
        if rank() != 0:
            return None
        clip_ids = [f"clip-{index}" for index in range(100)]
        with self.progress.open("job-00004", clip_ids) as listener:
            for clip_id in clip_ids:
                listener.started(clip_id)
                time.sleep(0.5)
                listener.finished(clip_id, "rendered", 0.5)
                if (self.folder / "stop").exists():
                    break
        return clip_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """One rank ends as `how` says, the others wait for ever; each rank and its child process leave their pids first."""

    folder: Path
    how: str
    falling_rank: int = 1

    def __call__(self) -> object:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        note(self.folder, f"pid-{rank()}", f"{os.getpid()} {child.pid}")
        while len(list(self.folder.glob("pid-*"))) < submitit.JobEnvironment().num_tasks:
            time.sleep(0.02)
        if rank() == self.falling_rank:
            note(self.folder, "fell", str(time.time()))
            match self.how:
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "exits":
                    os._exit(7)
                case "raises":
                    raise ValueError("the number of frames is odd")
        time.sleep(600)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwind:
    """Every rank waits for ever, and leaves a file if it is told to end in an orderly way."""

    folder: Path

    def __call__(self) -> object:
        note(self.folder, f"pid-{rank()}", str(os.getpid()))
        try:
            time.sleep(600)
        finally:
            note(self.folder, f"unwound-{rank()}")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DieOn:
    """Ends its process at once on one node; on any other it leaves the record of its clip."""

    bucket: Path
    key: str
    node: str

    def __call__(self) -> object:
        if os.environ["SLURMD_NODENAME"] == self.node:
            os._exit(3)
        time.sleep(0.5)
        note(self.bucket / "records", f"{self.key}.json", "{}")
        return None
