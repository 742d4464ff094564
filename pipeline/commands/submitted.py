"""The part of `submit` that renders: its jobs are started and driven to their end, its results told."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from cluster.job import CancelledError, Cluster, ClusterError, UnansweredError
from jobs.progress import ClipProgress
from jobs.store.bucket import Bucket
from pipeline.commands.report import is_report_due, write_report
from pipeline.exits import CommandError, Exit
from pipeline.interrupts import ignore_end_signals, interrupt_if_asked
from pipeline.planning.sharding import PlannedWork
from pipeline.run.at_work import AtWork
from pipeline.run.bill import Budget
from pipeline.run.claims import Claim, driving
from pipeline.run.damage import look_for_damage, write_plain_names
from pipeline.run.display import Display, open_display
from pipeline.run.driven import ShardJob
from pipeline.run.driver import Driver
from pipeline.run.environment import variables
from pipeline.run.growth import Growth, prune, undo_growth
from pipeline.run.job_code import forget_old_copies
from pipeline.run.jobs_file import StartedJobs, new_submit
from pipeline.run.machines import driver_host, work_folder
from pipeline.run.oversight import Oversight
from pipeline.run.panel import PanelDisplay
from pipeline.run.rules import RunRules
from pipeline.run.run import Run, undo_run
from pipeline.run.run_metrics import Standing
from pipeline.run.run_signals import RunSignals, open_signals
from pipeline.run.settings import RunSettings
from pipeline.run.shard_jobs import ShardJobs
from pipeline.run.state import Progress, read_progress
from pipeline.run.summary import Submitted, show_summary
from pipeline.run.view import open_view
from pipeline.screen import Screen, counted, own_command
from pipeline.signals.mail import Mail
from pipeline.signals.notify import Notifier
from pipeline.signals.webhook import Webhook

SECOND_CTRL_C_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One submit of a run: what was asked for, and where it goes. `left_out` clips were recorded before it began.

    `is_new`: whether it began the run. `keys`: of all its clips.
    `again`: whether it has clips that failed in an earlier submit's jobs and are to be tried once more. `at_work`: the jobs
    and clips of other submits. `growth`: how it changes the run's manifest. `channels`: who
    is told how it ends. `prune`: whether what left is removed.
    `parsable`: whether a detached submit says the ids of its jobs, and nothing else.
    """

    settings: RunSettings
    rules: RunRules
    bucket: Bucket
    run: Run
    is_new: bool
    keys: frozenset[str]
    left_out: int
    again: bool
    at_work: AtWork
    growth: Growth | None
    budget: Budget
    channels: Sequence[Webhook | Mail]
    prune: bool
    parsable: bool
    screen: Screen


def render(
    submission: Submission,
    cluster: Cluster,
    work: PlannedWork,
    numbers: dict[int, int],
    claim: Claim,
    *,
    detach: bool,
) -> int:
    """Starts the jobs and drives them to their end; returns the exit code. The claim is released once they are started.

    `numbers`: by index in the plan, the numbers of the shards. Raises CommandError, ClusterError, BucketError.
    """
    with _open_signals(submission) as signals:
        code = _render(submission, cluster, work, numbers, claim, detach=detach, signals=signals)
        signals.exit_code = None if code == Exit.INTERRUPTED else code
        return code


def end_without_jobs(submission: Submission, progress: Progress, *, told: Mapping[str, object] | None) -> int:
    """Ends a submit that finds nothing to render, and returns the exit code: metrics say so, and no report is missing.

    `progress`: how the run stands; `told`: its report, if this submit has just written it. Raises BucketError.
    """
    bucket, run, screen = submission.bucket, submission.run, submission.screen
    with _open_signals(submission) as signals:
        signals.look(progress, Standing(num_clips=len(submission.keys)))
        if told is None and is_report_due(bucket, progress):
            screen.note("the run's report is missing, or older than its clips: written anew")
            told = write_report(bucket, run, submission.keys)
        if submission.parsable:
            screen.result({"output": bucket.url, "run_id": run.run_id, "jobs": {}, "slurm_ids": []}, "")
            signals.exit_code = Exit.OK
        else:
            signals.exit_code = show_end(submission, told=told)
        return signals.exit_code


def _open_signals(submission: Submission) -> AbstractContextManager[RunSignals]:
    return open_signals(
        submission.settings.machines,
        variables(),
        bucket=submission.bucket,
        run_id=submission.run.run_id,
        budget=submission.budget,
        screen=submission.screen,
    )


def _render(
    submission: Submission,
    cluster: Cluster,
    work: PlannedWork,
    numbers: dict[int, int],
    claim: Claim,
    *,
    detach: bool,
    signals: RunSignals,
) -> int:
    settings, screen, bucket = submission.settings, submission.screen, submission.bucket
    folder, machines = work_folder(submission.run.run_id), settings.machines
    screen.note(
        f"{counted(work.num_clips, 'clip')} in {counted(len(numbers), 'job')} "
        f"({submission.left_out:,} recorded before), mesh {work.mesh}, "
        f"at most {counted(machines.max_parallel_jobs, 'job')} at once"
    )
    submit = new_submit(
        machines.cluster,
        str(folder),
        max_attempts=settings.render.max_attempts,
        price_per_gpu_hour=machines.price_per_gpu_hour,
        budget=machines.budget,
    )
    notifier = Notifier(
        channels=submission.channels, output=bucket.url, run_id=submission.run.run_id, screen=screen
    )  # fmt: skip
    oversight = Oversight(
        budget=submission.budget, notifier=notifier, failure_rate=machines.notify_failure_rate, signals=signals
    )  # fmt: skip
    driver = Driver(cluster, bucket, screen=screen, submit=submit, keys=submission.keys, oversight=oversight)
    with ExitStack() as stack:
        host, wanted = driver_host(machines), settings.dask and not detach
        prefix = machines.dashboard_prefix
        view = stack.enter_context(open_view(folder / "dask", host=host, prefix=prefix, screen=screen, wanted=wanted))
        progress = view.progress(min(len(numbers), machines.max_parallel_jobs))
        jobs = _shard_jobs(submission, work, progress)
        try:
            interrupt_if_asked()
            _start(submission, driver, jobs.new(work.shards.shards, numbers, again=submission.again), jobs)
            forget_left(submission)
            if not detach:
                stack.enter_context(driving(bucket, submit.submit_id))
            claim.release()
            if machines.cluster == "slurm":
                forget_old_copies(screen)
            if detach:
                return _detached(submission, submit.with_jobs(driver.jobs))
            if ids := submit.with_jobs(driver.jobs).slurm_ids:
                screen.note(f"handed to SLURM: {_shown(ids)}")
            planned_s = max(sum(s.seconds for s in work.shards.shards) / machines.max_parallel_jobs, 0.0)
            display: Display = open_display()
            if view.dashboard is not None:
                display = PanelDisplay(display, view, bucket=bucket, planned_speedup=work.speedup)
            driver.run(display, planned_s=planned_s, keep_alive=view.keep_alive)
        except KeyboardInterrupt:
            return _interrupted(submission, cluster, driver)
        except CommandError as error:
            notifier.tell("end", str(error), {"exit_code": int(error.exit_code)})
            raise
        finally:
            if not detach:
                driver.end()
    return _ended(submission, driver, notifier, dashboard=view.url)


def _ended(submission: Submission, driver: Driver, notifier: Notifier, *, dashboard: str | None) -> int:
    """Writes missing plain names and the report, tells how the submit ended, and returns the exit code."""
    bucket = submission.bucket
    if submission.settings.render.plain_videos:
        found = look_for_damage(bucket, submission.keys, plain_videos=True)
        write_plain_names(bucket, found.misnamed)
    report = write_report(bucket, submission.run, submission.keys)
    code = show_end(submission, dashboard=dashboard, told=report, budget_spent=driver.budget_spent)
    outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(report["outcomes"].items()))
    notifier.tell(
        "end",
        f"the submit has ended with exit code {code}: {outcomes}",
        {"exit_code": code, "clips": report["outcomes"]},
    )
    return code


def show_end(
    submission: Submission,
    *,
    dashboard: str | None = None,
    told: Mapping[str, object] | None = None,
    budget_spent: str | None = None,
) -> int:
    """Shows how the run stands after this submit and returns the exit code. Raises BucketError."""
    allowed = submission.settings.render.max_attempts
    return show_summary(
        submission.bucket,
        submission.run,
        read_progress(submission.bucket, submission.keys, allowed, settled=True),
        screen=submission.screen,
        submitted=Submitted(left_out=submission.left_out, told=told, dashboard=dashboard, budget_spent=budget_spent),
    )


def _start(submission: Submission, driver: Driver, asked: list[ShardJob], jobs: ShardJobs) -> None:
    """Hands the jobs to the cluster. If it refuses them all, the output is as it was before this submit."""
    try:
        driver.start(asked, jobs.taken_over(submission.at_work.orphans))
    except (UnansweredError, CancelledError):
        raise  # jobs of it may be there, or end only now: they need what the run has in the bucket
    except ClusterError:
        shards = [shard.shard for shard in asked]
        if submission.is_new and not driver.jobs:
            undo_run(submission.bucket, shards)
        elif submission.growth and not driver.jobs:
            plain = submission.settings.render.plain_videos
            undo_growth(submission.bucket, submission.growth, shards, plain_videos=plain)
        raise


def _shard_jobs(submission: Submission, work: PlannedWork, progress: ClipProgress) -> ShardJobs:
    settings = submission.settings.job_settings(
        run_id=submission.run.run_id,
        mesh=work.mesh,
        broadcast_rules=submission.rules.job_broadcasts(),
        pinned_weights=submission.rules.pinned_weights(),
        pinned_loras=submission.rules.pinned_loras(),
        weights_digests={name: found.digest for name, found in submission.rules.weights.items()},
        longest_clip_s=work.longest_clip_s,
        exclusive=submission.bucket.exclusive,
    )
    return ShardJobs(settings=settings, machines=submission.settings.machines, progress=progress)


def _interrupted(submission: Submission, cluster: Cluster, driver: Driver) -> int:
    screen, output = submission.screen, submission.settings.output
    again = f"submit again to go on, or look: {own_command('status', output)}"
    if submission.settings.machines.cluster == "local":
        screen.note("interrupted: ending the local jobs")
        ignore_end_signals()  # ending them takes seconds
        cluster.cancel(driver.jobs)
        screen.error("interrupted", f"interrupted; what is rendered stays, {again}", Exit.INTERRUPTED)
        return Exit.INTERRUPTED
    screen.note(f"interrupted: the SLURM jobs go on; Ctrl-C again within {SECOND_CTRL_C_S:.0f} s cancels them")
    try:
        time.sleep(SECOND_CTRL_C_S)
    except KeyboardInterrupt:
        cluster.cancel(driver.jobs)
        screen.error("interrupted", f"interrupted, the SLURM jobs are cancelled; {again}", Exit.INTERRUPTED)
        return Exit.INTERRUPTED
    screen.error(
        "interrupted",
        f"interrupted; the SLURM jobs go on (to end them: {own_command('cancel', output)}); {again}",
        Exit.INTERRUPTED,
    )
    return Exit.INTERRUPTED


def _detached(submission: Submission, submit: StartedJobs) -> int:
    output, ids = submission.settings.output, submit.slurm_ids
    run_id, jobs = submission.run.run_id, dict(submit.jobs)
    document: dict[str, object] = {"output": output, "run_id": run_id, "jobs": jobs, "slurm_ids": ids}
    if submission.parsable:
        submission.screen.result(document, ":".join(ids))
        return Exit.OK
    submission.screen.result(
        document,
        f"{counted(len(submit.jobs), 'job')} handed to SLURM ({_shown(ids)})\n"
        f"  how far:  {own_command('status', output)}\n"
        f"  end them: {own_command('cancel', output)}\n"
        f"  a job after them: sbatch --dependency=afterany:{':'.join(ids)} ...\n"
        "  jobs that are lost are started again by the next submit",
    )
    return Exit.OK


def _shown(ids: Sequence[str]) -> str:
    return f"{', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}"


def forget_left(submission: Submission) -> None:
    """Removes what left the manifest, if the user asked for it. Raises BucketError."""
    if submission.prune:
        prune(submission.bucket, submission.keys, submission.screen)
