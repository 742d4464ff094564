"""Runs a program within a time limit, and ends all of its processes when the limit or a signal says so."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

ROOT = Path(__file__).parent.parent
EXIT, TIME, SIGNAL = "exit", "time", "signal"
"""What ended a program: itself, its limit, or a signal to this one."""
_POLL_S = 0.1
_TERM_S = 4.0
_OTHERS_S = 6.0
"""For processes in groups of their own, such as ranks of a local job: they end by themselves when their driver is gone."""


@dataclass(slots=True)
class Stop:
    """Whether a signal has asked this program to end."""

    asked: bool = False

    def _ask(self, _signum: int, _frame: FrameType | None) -> None:
        self.asked = True

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Takes SIGTERM and SIGINT while inside, so that nothing is cut off in its midst. For the main thread alone."""
        before = [(each, signal.signal(each, self._ask)) for each in (signal.SIGTERM, signal.SIGINT)]
        try:
            yield
        finally:
            for each, handler in before:
                signal.signal(each, handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended: `by` is EXIT, TIME or SIGNAL; `code`: its exit code, negative for a signal's number."""

    by: str
    code: int
    took_s: float


def run_bounded(
    words: Sequence[str], *, folder: Path, output: IO[bytes], errors: IO[bytes], limit_s: float, stop: Stop
) -> Ended:
    """Runs Python with these words in a folder, with this repository on its path; returns when none of its processes is left.

    `output`, `errors`: the files of its standard output and error. After `limit_s` seconds, or when `stop` is asked, its
    process group gets SIGTERM and then SIGKILL.
    """
    began = time.monotonic()
    # A group alone, so that whatever ends all of a terminal's programs ends it too.
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
        process_group=0,
    )  # fmt: skip
    by = EXIT
    try:
        while process.poll() is None:
            if stop.asked or time.monotonic() - began > limit_s:
                by = SIGNAL if stop.asked else TIME
                break
            time.sleep(_POLL_S)
    finally:
        if process.poll() is None:
            end_group(process)
        elif process.returncode:
            _signal_group(process, signal.SIGKILL)  # what it left behind
    return Ended(by=by, code=process.returncode, took_s=time.monotonic() - began)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a program that leads a process group, the group, and what they started in groups of their own."""
    try:
        others = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        others = []
    _signal_group(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_TERM_S)
    _signal_group(process, signal.SIGKILL)
    process.wait()
    ends = time.monotonic() + _OTHERS_S
    while any(map(_lives, others)) and time.monotonic() < ends:
        time.sleep(_POLL_S)
    for each in filter(_lives, others):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def _signal_group(process: subprocess.Popen[bytes], signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def _lives(process: psutil.Process) -> bool:
    # A zombie that nobody waits for is none of ours to wait for either.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
