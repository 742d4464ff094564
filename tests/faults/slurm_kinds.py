"""Faults of a cluster, each a function that makes one on a real SLURM and tells whether there was something to hit."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from functools import partial

from tests.cluster.daemons.processes import DaemonError
from tests.cluster.daemons.slurm import Slurm, signal_all
from tests.faults.one_run import Run

AWAY_S = (0.3, 4.0)
TARGET_S = 60.0
"""How long a fault waits for what it hits: on a busy machine a job starts half a minute after its submit."""
_MEETS_S = 60.0
"""How long a submit may take until it asks sbatch."""
_CANCELLED_S = 60.0
_DOWN_S = 60.0


def _jobs(run: Run) -> list[str]:
    assert run.world.slurm
    answer = run.world.slurm.run("squeue", "--noheader", "--array", "--states=running", "--format=%i")
    return sorted(answer.split())


def _slurm(run: Run, *command: str) -> bool:
    # The job may end between the look and the fault: then there was nothing to hit.
    assert run.world.slurm
    if not run.wait_for(lambda: _jobs(run), timeout_s=TARGET_S):
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


def _awaited_node(run: Run) -> str | None:
    """Returns a node that runs a job, once there is one; None if there is none in time, or it is free again."""
    return _busy_node(run) if run.wait_for(lambda: _busy_node(run), timeout_s=TARGET_S) else None


def _without_node(run: Run, take: Callable[[Slurm, str], object], give_back: Callable[[Slurm, str], object]) -> bool:
    """Takes a node that runs a job away for a while."""
    assert run.world.slurm
    if (node := _awaited_node(run)) is None:
        return False
    take(run.world.slurm, node)
    run.wait(run.rng.uniform(*AWAY_S))
    give_back(run.world.slurm, node)
    return True


def _set_state(slurm: Slurm, node: str, state: str) -> None:
    reason = () if state == "resume" else ("reason=fault",)
    slurm.run("scontrol", "update", f"nodename={node}", f"state={state}", *reason)


def _resume(slurm: Slurm, node: str) -> None:
    # A node that was down and whose daemon answers may be back by itself.
    with contextlib.suppress(DaemonError):
        _set_state(slurm, node, "resume")


def kill_node(run: Run) -> bool:
    return _without_node(run, Slurm.kill_node, Slurm.start_node)


def drain_node(run: Run) -> bool:
    return _without_node(run, partial(_set_state, state="drain"), partial(_set_state, state="resume"))


def kill_slurmd(run: Run) -> bool:
    """Ends a node's daemon alone, as an upgrade of the node does: what it had started goes on."""
    return _without_node(run, Slurm.kill_daemon, Slurm.start_node)


def down_node(run: Run) -> bool:
    """Takes a node out of the cluster as its operator would: SLURM ends its jobs and puts them back into the queue."""
    return _without_node(run, partial(_set_state, state="down"), _resume)


def _starts(run: Run) -> dict[str, int]:
    assert run.world.slurm
    answer = run.world.slurm.run("squeue", "--noheader", "--array", "--states=all", "--Format=JobArrayID:|,RestartCnt:")
    return {job: int(count) for job, count in (line.split("|") for line in answer.split())}


def preempt_jobs(run: Run) -> bool:
    """Asks for the whole cluster with more right to it."""
    slurm = run.world.slurm
    assert slurm
    if not run.wait_for(lambda: _jobs(run), timeout_s=TARGET_S):
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
    if not run.wait_for(lambda: _jobs(run), timeout_s=TARGET_S) or not (jobs := _jobs(run)):
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


def bad_node(run: Run) -> bool:
    """Lets every start of a job on a node die at once, for a time, and ends the one that runs there."""
    assert run.world.slurm
    if (node := _awaited_node(run)) is None:
        return False
    mark = run.world.bad_nodes / node
    mark.touch()
    try:
        signal_all(run.ranks_on(node), signal.SIGKILL)
        run.wait_for(lambda: mark.stat().st_size, timeout_s=TARGET_S)
        run.wait(run.rng.uniform(5.0, 25.0))
        deaths = mark.stat().st_size
    finally:
        mark.unlink()
    run.note(f"{node} was bad, {deaths} ranks died there at their start")
    return deaths > 0


def freeze_node(run: Run) -> bool:
    """Stops a node until SLURM has given it up, and lets it go on: the ranks of the earlier start are at work again."""
    slurm = run.world.slurm
    assert slurm
    if (node := _awaited_node(run)) is None:
        return False
    ranks = run.ranks_on(node)
    stopped = slurm.freeze_node(node)

    def is_down() -> bool:
        with contextlib.suppress(DaemonError):
            return "down" in slurm.run("sinfo", "--noheader", f"--nodes={node}", "--format=%T")
        return False

    try:
        hit = run.wait_for(is_down, timeout_s=_DOWN_S) and bool(ranks)
        # Long enough for the next start of the job to be at work.
        run.wait(run.rng.uniform(0.0, 15.0))
    finally:
        signal_all(stopped, signal.SIGCONT)
    run.note(f"{node} was frozen with {len(ranks)} ranks, and is back")
    return hit


def freeze_controller(run: Run) -> bool:
    """Stops slurmctld in the moment in which the run asks sbatch, until sbatch has given up; then it acts on the request."""
    slurm, sbatch = run.world.slurm, run.world.sbatch
    assert slurm
    assert sbatch
    pid = slurm.daemons.pid("slurmctld")
    try:
        hit = _meet_in_sbatch(run, f"kill -STOP {pid}")
        if hit:
            run.wait(run.rng.uniform(3.0, 25.0))
    finally:
        sbatch.take_back()
        signal_all([pid], signal.SIGCONT)
    return hit


def cancel_in_submit(run: Run) -> bool:
    """Cancels the run while sbatch is at work, or has not yet told its caller of it; then submits again."""
    seconds = run.rng.uniform(0.5, 6.0)
    if not _meet_in_sbatch(run, run.rng.choice((f"sleep {seconds:.1f}", f"AFTER={seconds:.1f}"))):
        return False
    code = run.command("cancel", run.url)
    ended = run.wait_for(lambda: not run.running_drivers(), timeout_s=_CANCELLED_S)
    left = [] if run.wait_for(lambda: not _live(run), timeout_s=_CANCELLED_S) else _live(run)
    run.note(f"cancel in sbatch ended with {code}, its submits {'too' if ended else 'still run'}, jobs left: {left}")
    if code == 0 and (left or not ended):
        run.broken.append(
            f"{run.url}: {_CANCELLED_S:.0f} s after `cancel` said that all is cancelled, jobs {left} are left and the submit "
            f"that was handing over {'has ended' if ended else 'still runs'}"
        )
    run.submit()
    return True


def _meet_in_sbatch(run: Run, order: str) -> bool:
    """Lets the run ask sbatch, for a job that has died or for all jobs anew, and carries out the order in this moment."""
    slurm, sbatch = run.world.slurm, run.world.sbatch
    assert slurm
    assert sbatch
    ranks = run.ranks()
    sbatch.order(order)
    if run.running_drivers() and ranks and run.rng.random() < 0.5:
        signal_all([run.rng.choice(ranks)], signal.SIGKILL)
    else:
        # The next submit would take over jobs that go on.
        for driver in run.running_drivers():
            driver.kill()
            driver.wait()
        slurm.end_jobs()
        run.submit()
    hit = run.wait_for(lambda: sbatch.is_met, timeout_s=_MEETS_S)
    sbatch.take_back()
    return hit


def _live(run: Run) -> list[str]:
    """Returns the jobs that wait or run; what only cleans up after its end is none."""
    assert run.world.slurm
    return run.world.slurm.run("squeue", "--noheader", "--array", "--states=pending,running", "--format=%i").split()
