"""The faults, each a function that makes one and tells whether there was something to hit."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from tests.faults import slurm_kinds, store_kinds
from tests.faults.one_run import NO_CONDITIONS, POISONS, TWO_MANIFESTS, Run
from tests.faults.slurm_kinds import AWAY_S, TARGET_S
from tests.faults.world import World

Fault = Callable[[Run], bool]


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_rank(run: Run) -> bool:
    return run.wait_for(run.ranks, timeout_s=TARGET_S) and bool(pids := run.ranks()) and _kill(run.rng.choice(pids))


def stall_rank(run: Run) -> bool:
    """Stops a rank, as a machine that swaps does, and lets it go on."""
    if not run.wait_for(run.ranks, timeout_s=TARGET_S) or not (pids := run.ranks()):
        return False
    pid = run.rng.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        run.wait(run.rng.uniform(*AWAY_S))
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
    return run.wait_for(run.dask, timeout_s=TARGET_S) and bool(pids := run.dask()) and _kill(run.rng.choice(pids))


def two_submits(run: Run) -> bool:
    if run.is_complete:
        return False
    run.submit()
    return True


def freeze_ffmpeg(run: Run) -> bool:
    """Stops the next ffmpeg for ever."""
    ffmpeg = run.world.ffmpeg
    ffmpeg.order("kill -STOP $$")
    hit = run.wait_for(lambda: ffmpeg.is_met or run.is_complete, timeout_s=3 * TARGET_S) and ffmpeg.is_met
    ffmpeg.take_back()
    return hit


def _fill(run: Run, disk: Path, for_s: float) -> None:
    filler = disk / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        run.wait(for_s)
    finally:
        filler.unlink(missing_ok=True)


def fill_scratch(run: Run) -> bool:
    assert run.world.scratch
    _fill(run, run.world.scratch, run.rng.uniform(*AWAY_S))
    return True


def fill_jobs_disk(run: Run) -> bool:
    """Leaves no room where jobs are handed over and their results come back, and mostly lets a job end meanwhile."""
    assert run.world.jobs_disk
    if run.rng.random() < 0.7 and (pids := run.ranks()):
        _kill(run.rng.choice(pids))
    _fill(run, run.world.jobs_disk, run.rng.uniform(2.0, 12.0))
    return True


EVERYWHERE: Mapping[str, Fault] = MappingProxyType({
    "rank killed": kill_rank,
    "rank stalled": stall_rank,
    "driver killed": kill_driver,
    "dask killed": kill_dask,
    "two submits at once": two_submits,
    "ffmpeg frozen": freeze_ffmpeg,
    "s3 server killed": store_kinds.kill_s3,
    "s3 connections reset": store_kinds.trouble("reset"),
    "s3 answers late": store_kinds.trouble("delay"),
    "s3 answers 500": store_kinds.trouble("500"),
    "s3 answers 503": store_kinds.trouble("503"),
    "s3 answers 403": store_kinds.trouble("403"),
    "uploads late": store_kinds.late_uploads,
    "listings stale": store_kinds.stale_listings,
    "damaged files": store_kinds.damage,
})  # fmt: skip
ON_SLURM: Mapping[str, Fault] = MappingProxyType({
    "job cancelled": slurm_kinds.cancel_job,
    "job requeued": slurm_kinds.requeue_job,
    "node killed": slurm_kinds.kill_node,
    "slurmd killed": slurm_kinds.kill_slurmd,
    "node drained": slurm_kinds.drain_node,
    "node set down": slurm_kinds.down_node,
    "jobs preempted": slurm_kinds.preempt_jobs,
    "time limit": slurm_kinds.end_time,
    "bad node": slurm_kinds.bad_node,
    "node frozen": slurm_kinds.freeze_node,
    "controller frozen in sbatch": slurm_kinds.freeze_controller,
    "cancel during submit": slurm_kinds.cancel_in_submit,
})  # fmt: skip
ON_SCRATCH: Mapping[str, Fault] = MappingProxyType({"scratch disk full": fill_scratch})
ON_JOBS_DISK: Mapping[str, Fault] = MappingProxyType({"runs/.jobs full": fill_jobs_disk})
ALL_KINDS = tuple(sorted([*EVERYWHERE, *ON_SLURM, *ON_SCRATCH, *ON_JOBS_DISK, *POISONS, NO_CONDITIONS, TWO_MANIFESTS]))
UNDECIDED: Mapping[str, str] = MappingProxyType({NO_CONDITIONS: "listings stale"})
"""Kinds of which no run has both: in a store that neither creates exclusively nor lists what was written, nothing decides."""


def kinds_of(world: World) -> dict[str, Fault]:
    """Returns the faults that this world can be asked for while a run is under way."""
    kinds: Mapping[str, Fault] = EVERYWHERE
    return {
        **kinds,
        **(ON_SLURM if world.slurm else {}),
        **(ON_SCRATCH if world.scratch else {}),
        **(ON_JOBS_DISK if world.jobs_disk else {}),
    }
