"""The Dask scheduler's process: python -m cluster.dask_scheduler FOLDER HOST. Ends with its stdin, so with its driver.

The first line of its stdin is the dashboard's prefix, which may be empty: other users can see arguments, not a pipe.
A restart in the same folder takes the same key and, where they are free, the same ports, so jobs find it again.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import dask
from distributed import Scheduler

from cluster.run_page import FOLDER
from cluster.scheduler_file import SCHEDULER_FILE, SchedulerPlace, make_keys, read_place, security, write_place

_LOOPBACK = "127.0.0.1"
_DASHBOARD_PORT = 8787


_CONFIG = {
    # A job whose process dies is marked by SLURM and the bucket; Dask need not count it.
    "distributed.scheduler.allowed-failures": 1_000_000,
    "distributed.scheduler.work-stealing": False,
    # Of each bar of the task stream a kilobyte is kept: as many bars as a page can show, not ten times as many.
    "distributed.scheduler.dashboard.tasks.task-stream-length": 10_000,
}


async def serve(folder: Path, *, host: str, prefix: str) -> None:
    """Runs a scheduler until stdin closes; its dashboard on loopback only, under `prefix` (as `/proxy/8787`, or empty)."""
    make_keys(folder)
    previous = read_place(folder / SCHEDULER_FILE)
    port = _port(host, previous.host_and_port[1] if previous else 0)
    dashboard_port = _port(_LOOPBACK, previous.dashboard_port if previous else _DASHBOARD_PORT)
    routes = [*dask.config.get("distributed.scheduler.http.routes"), "cluster.run_page"]
    dask.config.set({"distributed.scheduler.http.routes": routes, FOLDER: str(folder)})
    async with Scheduler(
        host=host,
        port=port,
        protocol="tls://",
        security=security(folder),
        dashboard_address=f"{_LOOPBACK}:{dashboard_port}",
        http_prefix=prefix or "/",
    ) as scheduler:
        dashboard_port = scheduler.http_server.port
        dashboard_url = f"http://{_LOOPBACK}:{dashboard_port}{prefix}/status"
        write_place(SchedulerPlace(folder=folder, address=scheduler.address, dashboard_url=dashboard_url))
        await _stdin_closed()


def _port(host: str, wanted: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError:
            return 0
    return wanted


async def _stdin_closed() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    dask.config.set(_CONFIG)
    try:
        asyncio.run(serve(Path(sys.argv[1]), host=sys.argv[2], prefix=sys.stdin.readline().rstrip("\n")))
    except (OSError, RuntimeError) as error:
        sys.exit(str(error.__cause__ or error))
