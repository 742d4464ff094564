"""One local job's own process: starts the ranks, and ends all of them if one fails, the driver ends, or a signal says so.

Run by `LocalCluster` as `python -m cluster.local_group FOLDER DRIVER_PID AFTER_FIRST_EXIT_S`; the rest comes from
submitit's environment variables.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from submitit.core.utils import JobPaths

from cluster.end_signals import end_on_signals
from cluster.environment import variables
from cluster.job_files import error_tail, rank_logs

_POLL_S = 0.1
_INTERRUPT_S = 2.0
_CANCELLED_S = 6.0
"""Longer: every rank lives, and all of them agree first that they were told to end. On a busy machine that takes seconds."""


class _GroupEndError(Exception):
    """The group must end; the message says why."""


class _CancelledError(_GroupEndError):
    """A signal said so."""


def run_group(folder: Path, *, driver_pid: int, after_first_exit_s: float) -> int:
    """Runs the ranks to their end. Returns 0 if all did well, else 1, with the reason on stderr."""
    end_on_signals()  # the ranks inherit it
    ending = _Ending()
    signal.signal(signal.SIGTERM, ending)
    ranks: list[subprocess.Popen[bytes]] = []
    patience_s = _INTERRUPT_S
    try:
        for rank in range(int(variables()["SUBMITIT_LOCAL_NTASKS"])):
            ending.check()
            ranks.append(_start_rank(folder, rank))
        _wait(ranks, ending, driver_pid=driver_pid, after_first_exit_s=after_first_exit_s)
    except _GroupEndError as reason:
        if isinstance(reason, _CancelledError):
            patience_s = _CANCELLED_S
        sys.stderr.write(f"{reason}\n")
        fallen = [rank for rank, process in enumerate(ranks) if process.returncode]
        sys.stderr.write(error_tail(rank_logs(folder, str(os.getpid()), fallen)) or "")
        return 1
    finally:
        _end(ranks, patience_s)
    return 0


class _Ending:
    """Handles the cancelling signal. It only notes it: raised while a rank is being started, that rank would not be known."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self, _signum: int, _frame: FrameType | None) -> None:
        self._told = True

    def check(self) -> None:
        if self._told:
            raise _CancelledError("cancelled")


def _start_rank(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    job_id = str(os.getpid())
    paths = JobPaths(folder, job_id, rank)
    environment = dict(
        variables(), SUBMITIT_LOCAL_LOCALID=str(rank), SUBMITIT_LOCAL_GLOBALID=str(rank), SUBMITIT_LOCAL_JOB_ID=job_id
    )
    with paths.stdout.open("ab") as stdout, paths.stderr.open("ab") as stderr:
        return subprocess.Popen(
            shlex.split(variables()["SUBMITIT_LOCAL_COMMAND"]),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


def _wait(ranks: list[subprocess.Popen[bytes]], ending: _Ending, *, driver_pid: int, after_first_exit_s: float) -> None:
    deadline: float | None = None
    while True:
        ending.check()
        codes = [process.poll() for process in ranks]
        # All of them: a rank that sees another one killed may end within the same moment.
        if fallen := [f"rank {rank} {_how_it_ended(code)}" for rank, code in enumerate(codes) if code]:
            raise _GroupEndError(f"{', '.join(fallen)}; the other ranks of the job are ended")
        if all(code == 0 for code in codes):
            return
        if os.getppid() != driver_pid:
            raise _GroupEndError("the driver is gone; a local job lives no longer than its driver")
        if deadline is None and any(code == 0 for code in codes):
            deadline = time.monotonic() + after_first_exit_s
        if deadline is not None and time.monotonic() > deadline:
            left = [rank for rank, code in enumerate(codes) if code is None]
            raise _GroupEndError(f"ranks {left} still ran {after_first_exit_s:.0f} s after the first rank had ended")
        time.sleep(_POLL_S)


def _how_it_ended(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def _end(ranks: list[subprocess.Popen[bytes]], patience_s: float) -> None:
    # SIGINT first, so that temporary files go; a rank that waits in a collective needs SIGKILL.
    running = [process for process in ranks if process.poll() is None]
    _signal_groups(running, signal.SIGINT)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(process.poll() is None for process in running):
        time.sleep(_POLL_S / 4)
    # Every rank's process group, also of ranks that ended: their children may live on.
    _signal_groups(ranks, signal.SIGKILL)
    for process in ranks:
        process.wait()


def _signal_groups(processes: list[subprocess.Popen[bytes]], signum: signal.Signals) -> None:
    for process in processes:
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    sys.exit(run_group(Path(sys.argv[1]), driver_pid=int(sys.argv[2]), after_first_exit_s=float(sys.argv[3])))
