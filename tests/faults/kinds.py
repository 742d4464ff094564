"""The faults, each a function that makes one and tells whether there was something to hit."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from types import MappingProxyType

from tests.cluster.daemons.processes import DaemonError
from tests.faults.one_run import Run

Fault = Callable[[Run], bool]
_AWAY_S = (0.3, 4.0)
_TARGET_S = 20.0


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_rank(run: Run) -> bool:
    return run.wait_for(run.ranks, timeout_s=_TARGET_S) and bool(pids := run.ranks()) and _kill(run.rng.choice(pids))


def stall_rank(run: Run) -> bool:
    """Stops a rank, as a machine that swaps does, and lets it go on."""
    if not run.wait_for(run.ranks, timeout_s=_TARGET_S) or not (pids := run.ranks()):
        return False
    pid = run.rng.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        run.wait(run.rng.uniform(*_AWAY_S))
        os.kill(pid, signal.SIGCONT)
        return True
    return False


def kill_driver(run: Run) -> bool:
    drivers = run.running_drivers()
    if not drivers:
        return False
    driver = run.rng.choice(drivers)
    driver.kill()
    driver.wait()
    run.wait(run.rng.uniform(0.0, 3.0))
    run.submit()
    return True


def kill_dask(run: Run) -> bool:
    return run.wait_for(run.dask, timeout_s=_TARGET_S) and bool(pids := run.dask()) and _kill(run.rng.choice(pids))


def two_submits(run: Run) -> bool:
    if run.is_complete:
        return False
    run.submit()
    return True


def _jobs(run: Run) -> list[str]:
    assert run.world.slurm
    answer = run.world.slurm.run("squeue", "--noheader", "--array", "--states=running", "--format=%i")
    return sorted(answer.split())


def _slurm(run: Run, *command: str) -> bool:
    # The job may end between the look and the fault: then there was nothing to hit.
    assert run.world.slurm
    if not run.wait_for(lambda: _jobs(run), timeout_s=_TARGET_S):
        return False
    with contextlib.suppress(Exception):
        run.world.slurm.run(*command, run.rng.choice(_jobs(run)))
        return True
    return False


def cancel_job(run: Run) -> bool:
    return _slurm(run, "scancel")


def requeue_job(run: Run) -> bool:
    return _slurm(run, "scontrol", "requeue")


def _busy_node(run: Run) -> str | None:
    assert run.world.slurm
    nodes = run.world.slurm.run("squeue", "--noheader", "--states=running", "--format=%B").split()
    return run.rng.choice(sorted(nodes)) if nodes else None


def kill_node(run: Run) -> bool:
    assert run.world.slurm
    if not run.wait_for(lambda: _busy_node(run), timeout_s=_TARGET_S) or (node := _busy_node(run)) is None:
        return False
    run.world.slurm.kill_node(node)
    run.wait(run.rng.uniform(*_AWAY_S))
    run.world.slurm.start_node(node)
    return True


def drain_node(run: Run) -> bool:
    assert run.world.slurm
    if not run.wait_for(lambda: _busy_node(run), timeout_s=_TARGET_S) or (node := _busy_node(run)) is None:
        return False
    run.world.slurm.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=fault")
    run.wait(run.rng.uniform(*_AWAY_S))
    run.world.slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    return True


def kill_slurmd(run: Run) -> bool:
    """Ends a node's daemon alone, as an upgrade of the node does: what it had started goes on."""
    assert run.world.slurm
    if not run.wait_for(lambda: _busy_node(run), timeout_s=_TARGET_S) or (node := _busy_node(run)) is None:
        return False
    run.world.slurm.kill_daemon(node)
    run.wait(run.rng.uniform(*_AWAY_S))
    run.world.slurm.start_node(node)
    return True


def down_node(run: Run) -> bool:
    """Takes a node out of the cluster as its operator would: SLURM ends its jobs and puts them back into the queue."""
    assert run.world.slurm
    if not run.wait_for(lambda: _busy_node(run), timeout_s=_TARGET_S) or (node := _busy_node(run)) is None:
        return False
    run.world.slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=fault")
    run.wait(run.rng.uniform(*_AWAY_S))
    # A node whose daemon answers may be back by itself.
    with contextlib.suppress(DaemonError):
        run.world.slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    return True


def _starts(run: Run) -> dict[str, int]:
    assert run.world.slurm
    answer = run.world.slurm.run("squeue", "--noheader", "--array", "--states=all", "--Format=JobArrayID:|,RestartCnt:")
    return {job: int(count) for job, count in (line.split("|") for line in answer.split())}


def preempt_jobs(run: Run) -> bool:
    """Asks for the whole cluster with more right to it."""
    slurm = run.world.slurm
    assert slurm
    if not run.wait_for(lambda: _jobs(run), timeout_s=_TARGET_S):
        return False
    before = _starts(run)
    urgent = slurm.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    ).strip()
    hit = run.wait_for(lambda: any(_starts(run).get(job, 0) > count for job, count in before.items()), timeout_s=30)
    slurm.run("scancel", "--quiet", urgent)
    return hit


def end_time(run: Run) -> bool:
    """Shortens a job's time limit to a minute, so that SLURM tells it of its end at once (it looks every half minute)."""
    slurm = run.world.slurm
    assert slurm
    if not run.wait_for(lambda: _jobs(run), timeout_s=_TARGET_S) or not (jobs := _jobs(run)):
        return False
    job, before = run.rng.choice(jobs), _starts(run)

    def limit(minutes: str) -> bool:
        # The job may have ended meanwhile.
        with contextlib.suppress(DaemonError):
            slurm.run("scontrol", "update", f"jobid={job}", f"timelimit={minutes}")
            return True
        return False

    def over() -> bool:
        return _starts(run).get(job, 0) > before[job] or job not in _jobs(run)

    if job not in before or not limit("1"):
        return False
    run.wait_for(over, timeout_s=40)
    limit("60")
    return _starts(run).get(job, 0) > before[job]


def kill_s3(run: Run) -> bool:
    run.world.ceph.kill_gateway()
    run.wait(run.rng.uniform(*_AWAY_S))
    run.world.ceph.serve(run.world.s3_port)
    return True


def _trouble(mode: str) -> Fault:
    def make(run: Run) -> bool:
        before = run.world.proxy.hits
        run.world.proxy.make_trouble(mode, for_s=run.rng.uniform(*_AWAY_S))
        # Only what met a request was a fault.
        return run.wait_for(lambda: run.world.proxy.hits > before, timeout_s=_AWAY_S[1])

    return make


def fill_scratch(run: Run) -> bool:
    assert run.world.scratch
    filler = run.world.scratch / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    run.wait(run.rng.uniform(*_AWAY_S))
    filler.unlink(missing_ok=True)
    return True


EVERYWHERE: Mapping[str, Fault] = MappingProxyType({
    "rank killed": kill_rank,
    "rank stalled": stall_rank,
    "driver killed": kill_driver,
    "dask killed": kill_dask,
    "two submits at once": two_submits,
    "s3 server killed": kill_s3,
    "s3 connections reset": _trouble("reset"),
    "s3 answers late": _trouble("delay"),
    "s3 answers 500": _trouble("500"),
    "s3 answers 503": _trouble("503"),
    "s3 answers 403": _trouble("403"),
})  # fmt: skip
ON_SLURM: Mapping[str, Fault] = MappingProxyType({
    "job cancelled": cancel_job,
    "job requeued": requeue_job,
    "node killed": kill_node,
    "slurmd killed": kill_slurmd,
    "node drained": drain_node,
    "node set down": down_node,
    "jobs preempted": preempt_jobs,
    "time limit": end_time,
})  # fmt: skip
ON_SCRATCH: Mapping[str, Fault] = MappingProxyType({"scratch disk full": fill_scratch})
