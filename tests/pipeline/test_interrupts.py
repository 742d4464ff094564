"""Every command answers SIGTERM and SIGINT from its first moment, with a word and exit code 130."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.interrupts import InterruptedByError, heed_end_signals, ignore_end_signals, interrupt_if_asked
from tests.pipeline.command import environment


def signalled(
    words: list[str], *signums: signal.Signals, at: str, before: Callable[[], object] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command that gets signals in the moment in which it imports the module `at`."""
    code = f"""
import os, sys

class Finder:
    signums = {list(map(int, signums))}
    def find_spec(self, name, path=None, target=None):
        while name == {at!r} and self.signums:
            # As the code of a dataclass runs: Python counts a KeyboardInterrupt that leaves it as one that nobody handles.
            exec("os.kill(os.getpid(), self.signums.pop())")

sys.meta_path.insert(0, Finder())
from pipeline.__main__ import main
sys.exit(main())
"""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=before or heeding,
    )


def heeding() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ignoring() -> None:
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def blocking() -> None:
    heeding()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["submit", "cancel"])
@pytest.mark.parametrize("at", ["pipeline.screen", "pipeline.parser", "pipeline.commands.COMMAND"])
def test_a_command_that_is_told_to_end_while_it_starts_says_so(
    tmp_path: Path, at: str, command: str, signum: signal.Signals
) -> None:
    words = [command, str(tmp_path / "none"), "--json"]
    ran = signalled(words, signum, at=at.replace("COMMAND", command))
    assert (ran.returncode, ran.stderr) == (130, "error: interrupted\n")
    assert json.loads(ran.stdout)["exit_code"] == 130


def test_what_the_parent_ignores_of_ctrl_c_and_hangup_stays_ignored() -> None:
    ran = signalled(["--version"], signal.SIGINT, signal.SIGHUP, at="pipeline.parser", before=ignoring)
    assert (ran.returncode, ran.stderr) == (0, "")
    ran = signalled(["--version"], signal.SIGTERM, at="pipeline.parser", before=ignoring)
    assert (ran.returncode, ran.stderr) == (130, "error: interrupted\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_the_parent_blocks_are_heard(signum: signal.Signals) -> None:
    ran = signalled(["--version"], signum, at="pipeline.parser", before=blocking)
    assert (ran.returncode, ran.stderr) == (130, "error: interrupted\n")


@pytest.fixture
def signals_kept() -> Iterator[None]:
    kept = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in kept.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("signals_kept")
def test_an_interruption_that_a_library_drops_comes_before_long_work_begins() -> None:
    interrupt_if_asked()
    heed_end_signals()
    interrupt_if_asked()
    with pytest.raises(InterruptedByError):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(InterruptedByError):
        interrupt_if_asked()
    ignore_end_signals()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
