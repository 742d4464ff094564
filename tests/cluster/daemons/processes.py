"""Daemons of one folder: started in the foreground under us, known by pid and start time, stopped in order."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_IN_A_BLOCK = 20
_BLOCKS = range(17_000, 19_500, _IN_A_BLOCK)
"""First ports of blocks, below the range from which the kernel takes ports for outgoing connections."""
_OWN_BLOCKS: list[IO[str]] = []
"""Locks of the blocks that this process has, as long as it runs."""


class DaemonError(Exception):
    """A daemon is missing or did not come up; the message says which and what it said."""


def need_programs(programs: Sequence[str]) -> None:
    """Raises DaemonError naming the programs that are not installed."""
    absent = [name for name in programs if not _which(name)]
    if absent:
        raise DaemonError(f"not installed: {', '.join(absent)}; run .ci/install-cluster-packages as root")


def _which(name: str) -> str | None:
    return shutil.which(name, path=_search_path())


def _search_path() -> str:
    return os.pathsep.join(["/usr/sbin", "/usr/bin", "/sbin", "/bin", os.environ.get("PATH", "")])


def free_ports(count: int, blocks: range = _BLOCKS) -> int:
    """Returns the first of `count` free loopback ports in a row, which no other process that asks here gets meanwhile.

    Daemons listen seconds after their ports were looked at, so a look alone would let two clusters have the same ones.
    """
    assert count <= _IN_A_BLOCK, "a block has no more"
    for first in random.sample(blocks, len(blocks)):
        lock = (Path(tempfile.gettempdir()) / f"pab-ports-{os.getuid()}-{first}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.ExitStack() as probes:
                for port in range(first, first + count):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _OWN_BLOCKS.append(lock)
        return first
    raise DaemonError("no block of loopback ports is free")


def port_answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(what: str, condition: Callable[[], object], *, timeout_s: float, log: Path | None = None) -> None:
    """Waits until the condition holds. Raises DaemonError, with the end of the log, after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            said = log.read_text(errors="replace")[-2000:] if log and log.exists() else ""
            raise DaemonError(f"{what} did not come up in {timeout_s:.0f} s: {said}")
        time.sleep(0.05)


class Daemons:
    """The processes of one folder. What was started is written down there, so that another process can stop it."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self.root = root
        self.environment = {**environment, "PATH": _search_path()}
        self._ledger = root / "daemons.json"

    def spawn(self, name: str, command: Sequence[str]) -> None:
        """Starts one daemon in a session of its own (Ctrl-C in pytest is not for it), its output in log/NAME.out."""
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # Never waited for: a daemon that outlives this process is what the command line is for.
        process.returncode = 0
        self._ledger.write_text(json.dumps({**self._known(), name: [process.pid, start_ticks(process.pid)]}))

    def run(self, *command: str, check: bool = True, timeout_s: float = 30) -> str:
        """Runs a client command against these daemons and returns its stdout. Raises DaemonError if it fails."""
        done = subprocess.run(
            command, check=False, env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )
        if check and done.returncode:
            raise DaemonError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def pid(self, name: str) -> int:
        """Returns a daemon's pid."""
        return self._known()[name][0]

    def stop(self, names: Sequence[str], *, timeout_s: float = 10) -> None:
        """Ends daemons together: SIGTERM, then SIGKILL for what is left after `timeout_s`."""
        known = self._known()
        pids = [known[name] for name in names if name in known]
        for signum, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 2.0)):
            left = [pid for pid, start in pids if start_ticks(pid) == start]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            end = time.monotonic() + patience_s
            while time.monotonic() < end and any(start_ticks(pid) == start for pid, start in pids):
                time.sleep(0.02)

    def names(self) -> list[str]:
        """Returns the daemons ever started here, in order."""
        return list(self._known())

    def _known(self) -> dict[str, list[int]]:
        return json.loads(self._ledger.read_text()) if self._ledger.exists() else {}


def start_ticks(pid: int) -> int:
    """Returns when a process started, in clock ticks since boot; 0 if it is gone or only waits to be reaped."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
