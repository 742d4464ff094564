"""`submit`: from a manifest to videos. What is recorded is left out, so submitting again goes on where a run stopped."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cluster.job import CancelledError, Cluster, ClusterError, UnansweredError
from jobs.progress import ClipProgress
from jobs.settings import KeepChoice
from jobs.store import layout
from jobs.store.bucket import Bucket
from manifests.read import read_keys
from pipeline.commands.manifest import accepted_manifest, tell_warnings
from pipeline.commands.report import write_report
from pipeline.exits import Exit, UsageError
from pipeline.planning.dry_run import show_dry_run
from pipeline.planning.inputs import choose_kept, plan_work
from pipeline.planning.mesh import MeshChoice
from pipeline.planning.sharding import PlannedWork
from pipeline.run.at_work import AtWork, find_at_work, tell_at_work, wait_for_others
from pipeline.run.build import build_settings
from pipeline.run.claims import Claim, claimed, driving
from pipeline.run.damage import look_for_damage, put_aside, write_plain_names
from pipeline.run.display import Display, open_display
from pipeline.run.driven import ShardJob
from pipeline.run.driver import Driver
from pipeline.run.environment import environment_settings
from pipeline.run.jobs_file import new_submit
from pipeline.run.machines import driver_host, open_cluster, work_folder
from pipeline.run.options import choose
from pipeline.run.panel import PanelDisplay
from pipeline.run.references import ReferenceReader, access_of, keep_references, known_references
from pipeline.run.rules import RunRules, run_rules
from pipeline.run.run import Run, as_begun, asked_run, check_same, find_run, open_bucket, start_run, undo_run
from pipeline.run.settings import RunSettings
from pipeline.run.shard_jobs import ShardJobs
from pipeline.run.shards import create_shards
from pipeline.run.state import read_progress
from pipeline.run.summary import Submitted, show_summary, tell_damages
from pipeline.run.view import open_view
from pipeline.run.weights import loras_text
from pipeline.screen import Screen, counted

SECOND_CTRL_C_S = 10.0
Kept = Mapping[str, KeepChoice]
"""By family, how outputs are kept if not as asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One submit of a run: what was asked for, and where it goes. `left_out` clips were recorded before it began.

    `is_new`: whether it began the run. `keys`: of all its clips.
    `again`: whether it has clips that failed in an earlier submit's jobs and are to be tried once more. `at_work`: the jobs
    and clips of other submits.
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
    screen: Screen


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `submit`. What another submit is at work on is waited for, and rendered here if that one dies."""
    waited: list[Cluster] = []
    while (code := _submit(arguments, screen, waited=waited)) is None:
        pass
    return code


def _submit(
    arguments: argparse.Namespace, screen: Screen, tried: Sequence[Kept] = ({},), *, waited: list[Cluster]
) -> int | None:
    """Plans and renders once; None after it has waited for another submit, which may have left clips.

    `tried`: how outputs were kept so far while that is chosen for a run that begins; the last counts. `waited`: the
    clusters of earlier rounds, to which this one is added: a run that was cancelled since then is not gone on with.
    """
    chosen = choose(vars(arguments), environment_settings(), arguments.config)
    settings = build_settings(arguments.manifest, chosen)
    if arguments.detach and settings.machines.cluster == "local":
        raise UsageError("--detach needs SLURM: local jobs end with their driver; leave it out, or say --cluster slurm")
    bucket = open_bucket(settings.output)
    found = find_run(bucket)
    settings = as_begun(
        settings, found, asked={name: chosen[name].value for name in ("compile", "decode")}, kept=tried[-1]
    )
    rules = run_rules(settings.render, begun=found.weights if found else None)
    known = known_references(bucket) if found else {}
    references = ReferenceReader(access_of(settings.render), known=known)
    model = settings.render.model
    with ExitStack() as stack:
        manifest = accepted_manifest(arguments.manifest, rules, model=model, read_references=references)
        accepted, path = stack.enter_context(manifest)
        if (
            found is None
            and (kept := choose_kept(settings, rules, path, bucket)) is not None
            and kept.kept not in tried
        ):
            # It is part of the digests, so the rows are accepted again; only then it shows which of them name a broadcast.
            _tell_kept(kept, screen)
            return _submit(arguments, screen, [*tried, kept.kept], waited=waited)
        tell_warnings(accepted.warnings, screen)
        _tell_weights(rules, found, screen)
        asked = asked_run(settings, rules, manifest_digest=accepted.digest, num_clips=accepted.num_rows)
        if found:
            check_same(found, asked, bucket.url)
        if arguments.dry_run:
            return _dry_run(settings, rules, bucket, num_clips=accepted.num_rows, path=path, screen=screen)
        run_id = (found or asked).run_id
        cluster = _open_cluster(settings, run_id, waited)
        claim = stack.enter_context(claimed(bucket, screen))
        keys = frozenset(read_keys(str(path)))
        if found:
            _mend(bucket, keys, settings, screen)
        progress = read_progress(bucket, keys, settings.render.max_attempts)
        at_work = find_at_work(bucket, cluster, screen)
        # A driver that has rendered all of its clips still lives for a while.
        left = at_work.left_to_others & (keys - progress.recorded - progress.not_rendered)
        tell_at_work(at_work, left, screen)
        work = plan_work(settings, rules, path, progress, bucket, at_work=at_work.keys)
        screen.note(f"mesh: {work.choice.reason}")
        tell_warnings(work.warnings, screen)
        run_, is_new = start_run(bucket, asked, settings)
        if run_.run_id != run_id:
            cluster = _open_cluster(settings, run_.run_id, waited)
        _tell_store(bucket, screen)
        if references.known != known:
            keep_references(bucket, references.known)
        _write_manifest(bucket, path, screen)
        numbers = create_shards(bucket, work.shards, path)
        submission = Submission(
            settings=settings,
            rules=rules,
            bucket=bucket,
            run=run_,
            is_new=is_new,
            keys=keys,
            left_out=len(progress.recorded),
            again=bool(progress.again),
            at_work=at_work,
            screen=screen,
        )
        if numbers or at_work.orphans:
            code = _render(submission, cluster, work, numbers, claim, detach=arguments.detach)
            if arguments.detach or code == Exit.INTERRUPTED or not left:
                return code
    if left and not arguments.detach:
        wait_for_others(bucket, keys, at_work, cluster, screen)
        return None
    return _summary(submission)


def _open_cluster(settings: RunSettings, run_id: str, waited: list[Cluster]) -> Cluster:
    """Opens a run's cluster, which knows from here on when the run is cancelled.

    Raises CancelledError if that was done since an earlier round opened one: its jobs would come back.
    """
    cluster = open_cluster(settings.machines, work_folder(run_id))
    for earlier in waited:
        earlier.refuse_if_cancelled()
    waited.append(cluster)
    return cluster


def _tell_kept(choice: MeshChoice, screen: Screen) -> None:
    for model, told in choice.told.items():
        screen.note(f"kept outputs of {model}: {told}")


def _mend(bucket: Bucket, keys: Collection[str], settings: RunSettings, screen: Screen) -> None:
    """Puts damaged records aside, so that their clips are rendered again; writes plain names that are missing."""
    plain = settings.render.plain_videos
    found = look_for_damage(bucket, keys, plain_videos=plain)
    again = put_aside(bucket, found.damages)
    if found.damages:
        screen.note(f"{counted(len(found.damages), 'object')} damaged, {counted(len(again), 'clip')} to render again:")
        tell_damages(found.damages, screen)
    if found.misnamed:
        write_plain_names(bucket, found.misnamed)
        screen.note(f"{counted(len(found.misnamed), 'video')} had no right plain name in videos/, written again")


def _write_manifest(bucket: Bucket, path: Path, screen: Screen) -> None:
    there = bucket.size(layout.MANIFEST)
    if there == path.stat().st_size:
        return
    if there is not None:
        screen.note(
            f"{layout.MANIFEST} in the bucket has {there:,} bytes, needs {path.stat().st_size:,}: written again"
        )
    bucket.upload(path, layout.MANIFEST)


def _tell_store(bucket: Bucket, screen: Screen) -> None:
    if not bucket.exclusive:
        screen.note(
            f"{bucket.url}: the store writes over what exists even if it is asked not to (S3: If-None-Match), so files are "
            "looked for before they are created; submits of this run take turns"
        )


def _tell_weights(rules: RunRules, found: Run | None, screen: Screen) -> None:
    begun = found.weights if found else {}
    for name, weights in rules.weights.items():
        if weights.pinned != weights.asked:
            as_before = ", as when this run began" if begun.get(name) == weights else ""
            screen.note(f"weights of {name}: {weights.pinned}{as_before}")
        if weights.loras:
            screen.note(f"LoRAs of {name}: {weights.loras_text}")
        for text, loras in weights.row_loras.items():
            screen.note(f"LoRAs of rows of {name} that say {text}: {loras_text(loras)}")


def _dry_run(
    settings: RunSettings, rules: RunRules, bucket: Bucket, *, num_clips: int, path: Path, screen: Screen
) -> int:  # fmt: skip
    progress = read_progress(bucket, frozenset(read_keys(str(path))), settings.render.max_attempts)
    work = plan_work(settings, rules, path, progress, bucket)
    show_dry_run(settings, work, work.times.costs, progress=progress, num_clips=num_clips, screen=screen)
    return Exit.OK


def _render(
    submission: Submission,
    cluster: Cluster,
    work: PlannedWork,
    numbers: dict[int, int],
    claim: Claim,
    *,
    detach: bool,
) -> int:
    settings, screen, bucket = submission.settings, submission.screen, submission.bucket
    folder = work_folder(submission.run.run_id)
    machines = settings.machines
    screen.note(
        f"{counted(work.num_clips, 'clip')} in {counted(len(numbers), 'job')} "
        f"({submission.left_out:,} recorded before), mesh {work.mesh}, "
        f"at most {counted(machines.max_parallel_jobs, 'job')} at once"
    )
    submit = new_submit(machines.cluster, str(folder), max_attempts=settings.render.max_attempts)
    driver = Driver(cluster, bucket, screen=screen, submit=submit, keys=submission.keys)
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        host, wanted = driver_host(machines), settings.dask and not detach
        prefix = machines.dashboard_prefix
        view = stack.enter_context(open_view(folder / "dask", host=host, prefix=prefix, screen=screen, wanted=wanted))
        progress = view.progress(min(len(numbers), machines.max_parallel_jobs))
        jobs = _shard_jobs(submission, work, progress)
        try:
            _start(submission, driver, jobs.new(work.shards.shards, numbers, again=submission.again), jobs)
            if not detach:
                stack.enter_context(driving(bucket, submit.submit_id))
            claim.release()
            if detach:
                return _detached(submission, driver)
            planned_s = max(sum(s.seconds for s in work.shards.shards) / machines.max_parallel_jobs, 0.0)
            display: Display = open_display()
            if view.dashboard is not None:
                display = PanelDisplay(display, view, bucket=bucket, planned_speedup=work.speedup)
            driver.run(display, planned_s=planned_s, keep_alive=view.keep_alive)
        except KeyboardInterrupt:
            return _interrupted(submission, cluster, driver)
        finally:
            if not detach:
                driver.end()
    if settings.render.plain_videos:
        found = look_for_damage(bucket, submission.keys, plain_videos=True)
        write_plain_names(bucket, found.misnamed)
    report = write_report(bucket, submission.run, submission.keys)
    return _summary(submission, dashboard=view.url, told=report)


def _summary(
    submission: Submission, dashboard: str | None = None, told: Mapping[str, object] | None = None
) -> int:  # fmt: skip
    allowed = submission.settings.render.max_attempts
    return show_summary(
        submission.bucket,
        submission.run,
        read_progress(submission.bucket, submission.keys, allowed, settled=True),
        screen=submission.screen,
        submitted=Submitted(left_out=submission.left_out, told=told, dashboard=dashboard),
    )


def _start(submission: Submission, driver: Driver, asked: list[ShardJob], jobs: ShardJobs) -> None:
    """Hands the jobs to the cluster. If it refuses them all, and this submit began the run, the output is free again."""
    try:
        driver.start(asked, jobs.taken_over(submission.at_work.orphans))
    except (UnansweredError, CancelledError):
        raise  # jobs of it may be there, or end only now: they need what the run has in the bucket
    except ClusterError:
        if submission.is_new and not driver.jobs:
            undo_run(submission.bucket, (shard.shard for shard in asked))
        raise


def _shard_jobs(submission: Submission, work: PlannedWork, progress: ClipProgress) -> ShardJobs:
    settings = submission.settings.job_settings(
        run_id=submission.run.run_id,
        mesh=work.mesh,
        broadcast_rules=submission.rules.job_broadcasts(),
        pinned_weights=submission.rules.pinned_weights(),
        pinned_loras=submission.rules.pinned_loras(),
        longest_clip_s=work.longest_clip_s,
        exclusive=submission.bucket.exclusive,
    )
    return ShardJobs(settings=settings, machines=submission.settings.machines, progress=progress)


@contextmanager
def _interruptible() -> Iterator[None]:
    # A driver that is told to end ends like one that is interrupted: its local jobs go with it in an orderly way.
    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _interrupted(submission: Submission, cluster: Cluster, driver: Driver) -> int:
    screen, output = submission.screen, submission.settings.output
    again = f"submit again to go on, or look: python -m pipeline status {output}"
    if submission.settings.machines.cluster == "local":
        screen.note("interrupted: ending the local jobs")
        # Takes seconds. `timeout` and `make` both pass a signal on, so the second one must not cut this short.
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
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
        f"interrupted; the SLURM jobs go on (to end them: python -m pipeline cancel {output}); {again}",
        Exit.INTERRUPTED,
    )
    return Exit.INTERRUPTED


def _detached(submission: Submission, driver: Driver) -> int:
    output = submission.settings.output
    ids = sorted({job.id for job in driver.jobs if job.id})
    submission.screen.result(
        {"output": output, "run_id": submission.run.run_id, "jobs": {job.name: job.id for job in driver.jobs}},
        f"{counted(len(driver.jobs), 'job')} handed to SLURM ({', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''})\n"
        f"  how far:  python -m pipeline status {output}\n"
        f"  end them: python -m pipeline cancel {output}\n"
        "  jobs that are lost are started again by the next submit",
    )
    return Exit.OK
