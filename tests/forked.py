"""Processes forked from a server that has the libraries loaded: starting each from nothing takes seconds."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch


def fork_server() -> Any:
    """The way of starting processes that has everything loaded which tests need in them; one server per process."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.rank_libraries"])
    return context


@dataclass(frozen=True, slots=True)
class Forked:
    """A process that runs one function, with what tests use of `subprocess.Popen`."""

    process: BaseProcess

    def wait(self, timeout_s: float | None = None) -> int:
        """Returns the exit code, of a process ended by a signal the negative signal."""
        self.process.join(timeout_s)
        code = self.process.exitcode
        assert code is not None, f"still running after {timeout_s} s"
        return code

    def send_signal(self, signum: int) -> None:
        assert self.process.pid is not None
        if self.process.exitcode is None:
            os.kill(self.process.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_forked(
    function: Callable[..., Any],
    *args: Any,
    stderr: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Forked:
    """Starts `function(*args)` in a process with this one's environment and the given one's on top.

    The function must be importable. `stderr`: the file to which the process's error output is added.
    """
    variables = {**os.environ, **(environment or {})}
    # A daemon ends with its parent: a test that fails leaves nothing behind.
    process = fork_server().Process(target=_run, args=(function, args, stderr, variables), daemon=True)
    process.start()
    return Forked(process)


def _run(
    function: Callable[..., Any], args: tuple[Any, ...], stderr: Path | None, variables: Mapping[str, str]
) -> None:
    # What a process started from nothing would have of its own, and not from the server.
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if stderr is not None:
        with stderr.open("ab") as file:
            os.dup2(file.fileno(), 2)
    function(*args)
