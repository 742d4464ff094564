"""A Dask scheduler with its dashboard beside the driver: the view of a run, which decides nothing and may be lost."""

from __future__ import annotations

import contextlib
import getpass
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from cluster.environment import for_child
from cluster.job import ClusterError
from cluster.job_files import error_tail, private_folder
from cluster.run_state import RunState, write_state
from cluster.scheduler_file import SCHEDULER_FILE, SchedulerPlace, read_place

_START_S = 90.0
_STOP_S = 5.0


class Dashboard:
    """A scheduler process that lives as long as this object's `with` block, or as the driver.

    `folder` must be seen by the jobs; it is made private (0700), for the scheduler's TLS key lies in it. `host`: where the
    scheduler listens for jobs; loopback unless jobs run on other machines. The dashboard itself is on loopback always.
    `prefix`: path under which a proxy shows it, such as `/user/me/proxy/8787`.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", prefix: str = "") -> None:
        self._folder = private_folder(folder)
        self._host = host
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None
        self._place: SchedulerPlace | None = None

    @property
    def scheduler_file(self) -> Path:
        """What `DaskProgress` needs."""
        return self._folder / SCHEDULER_FILE

    @property
    def pid(self) -> int:
        """The scheduler's process."""
        assert self._process, "the dashboard is not started"
        return self._process.pid

    @property
    def url(self) -> str:
        """The dashboard's page, for a browser on the driver's machine."""
        assert self._place, "the dashboard is not started"
        return self._place.dashboard_url

    @property
    def run_url(self) -> str:
        """The page of the run, which `show` fills."""
        return self.url.removesuffix("status") + "run"

    def show(self, state: RunState) -> None:
        """Puts how far the run is on its page. Raises OSError."""
        write_state(self._folder, state)

    @property
    def ssh_hint(self) -> str:
        """The command that brings the dashboard to a browser on another machine."""
        assert self._place, "the dashboard is not started"
        port = self._place.dashboard_port
        return f"ssh -N -L {port}:127.0.0.1:{port} {getpass.getuser()}@{socket.gethostname()}"

    def start(self) -> None:
        """Starts the scheduler and waits until it listens. Raises ClusterError with its error output if it does not."""
        before = self.scheduler_file.stat().st_mtime_ns if self.scheduler_file.exists() else 0
        log_path = self._folder / "dask-scheduler.log"
        try:
            self._process = self._spawn(log_path)
        except OSError as error:
            raise ClusterError(f"the Dask scheduler did not start: {error}; run without the dashboard") from error
        deadline = time.monotonic() + _START_S
        while not self.scheduler_file.exists() or self.scheduler_file.stat().st_mtime_ns == before:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                reason = (error_tail([log_path]) or "no reason given").splitlines()[-1]
                raise ClusterError(
                    f"the Dask scheduler did not start on {self._host}: {reason}; its log is {log_path}; "
                    "name an address of this machine, or run without the dashboard"
                )
            time.sleep(0.05)
        self._place = read_place(self.scheduler_file)

    def _spawn(self, log_path: Path) -> subprocess.Popen[bytes]:
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cluster.dask_scheduler", self._folder, self._host],
                env=for_child(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdin, "its stdin is a pipe"
        with contextlib.suppress(BrokenPipeError):  # it has died already: its log says why
            # Not as an argument: whoever has a shell here can list those, and behind a proxy the prefix is the secret.
            process.stdin.write(f"{self._prefix}\n".encode())
            process.stdin.flush()
        return process

    def revive(self) -> bool:
        """Starts the scheduler again if it has died; jobs rejoin by themselves. Returns whether it had."""
        if self._process is None or self._process.poll() is None:
            return False
        self.stop()
        self.start()
        return True

    def stop(self) -> None:
        """Ends the scheduler; jobs go on without it."""
        if self._process is None:
            return
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
