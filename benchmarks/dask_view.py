"""Loads a real Dask scheduler as a large run does: `python -m benchmarks.dask_view [--jobs 1000] [--clips 100] [--check]`.

Every job announces its clips as jobs do, over TLS, with a worker and a client of its own; only the rendering is left out, so
clips follow each other much faster than on GPUs. Tells the scheduler's memory and CPU, how many tasks it holds at once, and
how fast its pages answer meanwhile. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from cluster.dashboard import Dashboard
from cluster.dask_progress import DaskProgress, kept_tasks
from cluster.job_files import private_folder

PAGES = ("/status", "/json/counts.json", "/info/main/workers.html")
MOST_PAGE_S = 5.0
"""A person waits so long for a page."""
MOST_TASK_MB = 200.0
"""Memory that the scheduler may take for tasks beyond what 1,000 workers cost: 100,000 held tasks would take 290 MB."""
MOST_TASKS_PER_JOB = 12
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Watched:
    """What was seen of the scheduler while it ran."""

    page_s: dict[str, list[float]] = field(default_factory=lambda: {page: [] for page in PAGES})
    most_tasks: int = 0
    most_workers: int = 0
    unanswered: int = 0


def main() -> int:
    """Runs the load and returns 1 if --check finds the scheduler too large or too slow."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dask_view", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=100, help="of each job")
    parser.add_argument("--seconds", type=float, default=480.0, help="in which all clips pass")
    parser.add_argument("--ramp", type=float, default=180.0, metavar="SECONDS", help="in which the jobs join")
    parser.add_argument("--processes", type=int, default=10, help="that the jobs share")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pab-dask-") as name:
        result = load(Path(name), arguments)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    slowest = max(result["slowest_page_s"].values())
    fine = (
        result["workers"] == arguments.jobs
        and result["most_tasks"] <= MOST_TASKS_PER_JOB * arguments.jobs
        and result["mb_for_tasks"] <= MOST_TASK_MB
        and slowest <= MOST_PAGE_S
        and not result["pages_unanswered"]
    )
    return int(arguments.check and not fine)


def load(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts scheduler and jobs, lets all clips pass, and returns what that took."""
    context = multiprocessing.get_context("spawn")
    begin, end = context.Event(), context.Event()
    with Dashboard(private_folder(folder / "dask")) as dashboard:
        idle_mb = _memory_mb(dashboard.pid)
        shares = [range(first, arguments.jobs, arguments.processes) for first in range(arguments.processes)]
        processes = [
            context.Process(
                target=announce,
                args=(dashboard.scheduler_file, share, arguments, begin),
            )
            for share in shares
        ]
        started = time.monotonic()
        for process in processes:
            process.start()
        watched = Watched()
        while (joined := _counts(dashboard.url, watched)) < arguments.jobs and time.monotonic() - started < 1800:
            time.sleep(1.0)
        joined_s = time.monotonic() - started
        joined_mb, cpu_s, began = _memory_mb(dashboard.pid), _cpu_s(dashboard.pid), time.monotonic()
        watched = Watched(most_workers=joined)
        begin.set()
        watching = threading.Thread(target=_watch, args=(dashboard.url, watched, end))
        watching.start()
        for process in processes:
            process.join()
        took_s = time.monotonic() - began
        end.set()
        watching.join()
        cpu_s, last_mb = _cpu_s(dashboard.pid) - cpu_s, _memory_mb(dashboard.pid)
    return {
        "jobs": arguments.jobs,
        "clips": arguments.jobs * arguments.clips,
        "workers": watched.most_workers,
        "seconds_to_join": round(joined_s, 1),
        "seconds": round(took_s, 1),
        "clips_per_s": round(arguments.jobs * arguments.clips / took_s, 1),
        "scheduler_mb": {"idle": round(idle_mb), "all_joined": round(joined_mb), "at_the_end": round(last_mb)},
        "mb_for_tasks": round(last_mb - joined_mb, 1),
        "scheduler_cores": round(cpu_s / took_s, 2),
        "most_tasks": watched.most_tasks,
        "pages_asked": sum(map(len, watched.page_s.values())),
        "pages_unanswered": watched.unanswered,
        "median_page_s": {page: round(statistics.median(found), 3) for page, found in watched.page_s.items() if found},
        "slowest_page_s": {page: round(max(found), 3) for page, found in watched.page_s.items() if found},
    }


def announce(scheduler_file: Path, jobs: range, arguments: argparse.Namespace, begin: Event) -> None:
    """Is a process of several jobs: all join, then their clips begin and end, as many as asked for in as many seconds."""
    num_clips, seconds = arguments.clips, arguments.seconds
    progress = DaskProgress(scheduler_file=str(scheduler_file), kept_tasks=kept_tasks(arguments.jobs))
    with ExitStack() as stack:
        names = {job: [f"{job}-{clip}" for clip in range(num_clips)] for job in jobs}
        listeners = {}
        for job, clips in names.items():
            listeners[job] = stack.enter_context(progress.open(f"job-{job:05d}", clips))
            time.sleep(arguments.ramp / len(jobs))
        begin.wait()
        first = time.monotonic()
        for clip in range(num_clips):
            for job, listener in listeners.items():
                listener.started(names[job][clip])
                if clip:
                    listener.finished(names[job][clip - 1], "rendered", seconds / num_clips)
            time.sleep(max(0.0, first + (clip + 1) * seconds / num_clips - time.monotonic()))
        for job, listener in listeners.items():
            listener.finished(names[job][-1], "rendered", seconds / num_clips)


def _watch(url: str, watched: Watched, end: Event) -> None:
    while not end.is_set():
        for page in PAGES:
            began = time.monotonic()
            try:
                urllib.request.urlopen(urljoin(url, page), timeout=30).read()
            except OSError:
                watched.unanswered += 1
            watched.page_s[page].append(time.monotonic() - began)
        _counts(url, watched)
        time.sleep(1.0)


def _counts(url: str, watched: Watched) -> int:
    try:
        answer = urllib.request.urlopen(urljoin(url, "/json/counts.json"), timeout=30).read()
    except OSError:
        watched.unanswered += 1
        return watched.most_workers
    counts = json.loads(answer)
    watched.most_tasks = max(watched.most_tasks, int(counts["tasks"]))
    watched.most_workers = max(watched.most_workers, int(counts["workers"]))
    return int(counts["workers"])


def _memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    sys.exit(main())
