"""`submit`: from a manifest to videos. What is recorded is left out, so submitting again goes on where a run stopped."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.devices import has_gpu
from cluster.job import Cluster
from jobs.media.reference_access import ReferenceAccess
from jobs.store.bucket import Bucket
from jobs.version import code_digest
from manifests.accept import AcceptedManifest
from manifests.read import read_keys
from manifests.sources.files import source_name
from pipeline.commands.manifest import accepted_manifest, tell_warnings
from pipeline.commands.report import write_report
from pipeline.commands.sources import ManifestSource, opened_source
from pipeline.commands.submitted import Submission, end_without_jobs, forget_left, render
from pipeline.exits import Exit, UsageError
from pipeline.planning.dry_run import show_dry_run
from pipeline.planning.inputs import AS_ASKED, Beginning, choose_beginning, plan_work
from pipeline.planning.scripts import slurm_answers
from pipeline.planning.sharding import PlannedWork
from pipeline.run.at_work import find_at_work, tell_at_work, wait_for_others
from pipeline.run.bill import budget_of, prices_of
from pipeline.run.build import build_settings
from pipeline.run.claims import claimed
from pipeline.run.damage import look_for_damage, put_aside, write_plain_names
from pipeline.run.environment import environment_settings, variables
from pipeline.run.growth import (
    Growth,
    find_growth,
    refuse_while_at_work,
    settle_plain_names,
    start_or_grow,
    write_manifest,
)
from pipeline.run.libraries import check_libraries, check_torch
from pipeline.run.machines import open_cluster, planned_folder, work_folder
from pipeline.run.options import Chosen, choose
from pipeline.run.references import KnownReference, ReferenceReader, keep_references, known_references
from pipeline.run.rules import RunRules, run_rules
from pipeline.run.run import (
    Run,
    as_begun,
    asked_run,
    begun_notes,
    find_run,
    open_bucket,
)
from pipeline.run.run_signals import check_signals
from pipeline.run.settings import RunSettings
from pipeline.run.shards import create_shards
from pipeline.run.signing import signing_notes, try_signing, with_certificate
from pipeline.run.state import read_progress
from pipeline.run.summary import tell_damages
from pipeline.run.weights import NOT_LOOKED_AT, loras_text
from pipeline.screen import Screen, counted
from pipeline.signals.mail import Mail
from pipeline.signals.notify import open_channels
from pipeline.signals.webhook import Webhook


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `submit`. What another submit is at work on is waited for, and rendered here if that one dies."""
    code_digest()  # of the files as they are now: planning may take minutes, and an edit meanwhile is not this program
    waited: list[Cluster] = []
    model = str(choose(vars(arguments), environment_settings(), arguments.config)["model"].value)
    with opened_source(arguments, arguments.manifest, screen, model=model) as source:
        while (code := _submit(arguments, source, screen, waited=waited)) is None:
            pass
    return code


def _submit(
    arguments: argparse.Namespace,
    source: ManifestSource,
    screen: Screen,
    tried: Sequence[Beginning] = (AS_ASKED,),
    *,
    waited: list[Cluster],
) -> int | None:
    """Plans and renders once; None after it has waited for another submit, which may have left clips.

    `tried`: what was chosen so far for a run that begins; the last counts. `waited`: the
    clusters of earlier rounds, to which this one is added: a run that was cancelled since then is not gone on with.
    """
    chosen = choose(vars(arguments), environment_settings(), arguments.config)
    settings = build_settings(source_name(arguments.manifest), chosen, place=source.place)
    _check_detach(arguments, settings, chosen)
    signing = try_signing(settings.render)
    channels = _open_channels(settings, chosen)
    bucket = open_bucket(settings.output)
    found = find_run(bucket)
    settings = as_begun(settings, found, asked=_asked(chosen), kept=tried[-1].kept, weighed=tried[-1].weighed)
    rules = run_rules(
        settings.render,
        begun=found.weights if found else None,
        defaults=found.broadcasts if found else None,
        ask_hub=not arguments.dry_run,
    )
    known = known_references(bucket) if found else {}
    references = ReferenceReader(ReferenceAccess.of(settings.render), known=known)
    model = settings.render.model
    with ExitStack() as stack:
        manifest = accepted_manifest(source, rules, model=model, read_references=references)
        accepted, path = stack.enter_context(manifest)
        if found is None:
            begin = choose_beginning(settings, rules, path, bucket, weigh=_asked(chosen)["compile"] == "auto")
            if begin.pixels not in [each.pixels for each in tried]:
                # It is part of the digests, so the rows are accepted again; only then it shows which name a broadcast.
                _tell_kept(begin, screen)
                return _submit(arguments, source, screen, [*tried, begin], waited=waited)
            settings = _with_reasons(settings, begin, tried[-1])
        signing += signing_notes(settings.render, found, settings.output)
        here = settings.machines.cluster == "local" and not arguments.dry_run
        libraries = check_libraries({name: each.pinned for name, each in rules.weights.items()}, here=here)
        gpu_here = has_gpu(variables())
        torch = check_torch(settings.render.device, chosen["device"], here=here, gpu_here=gpu_here)
        tell_warnings([*libraries, *torch], screen)
        tell_warnings(source.untold([*accepted.warnings, *_begun_notes(settings, rules, chosen), *signing]), screen)
        _tell_weights(rules, found, screen)
        asked = asked_run(settings, rules, manifest_digest=accepted.digest, num_clips=accepted.num_rows)
        growth = find_growth(bucket, found, asked, path, forced=arguments.force_new_settings) if found else None
        if growth:
            screen.note(growth.told(prune=arguments.prune))
        wanted = _Wanted(
            settings=settings, rules=rules, bucket=bucket, found=found, asked=asked, growth=growth, path=path,
            channels=channels, references=references.known if references.known != known else None,
            with_references=bool(references.known),
        )  # fmt: skip
        if arguments.dry_run:
            return _dry_run(wanted, accepted, screen)
        return _carry_out(wanted, arguments, stack, screen, waited=waited)


def _check_detach(arguments: argparse.Namespace, settings: RunSettings, chosen: Mapping[str, Chosen]) -> None:
    """Raises UsageError for what contradicts a submit without a driver, or needs one."""
    if arguments.parsable and not arguments.detach:
        raise UsageError(
            "--parsable is for --detach: else the command ends after the jobs; add --detach, or leave it out"
        )
    if not arguments.detach:
        return
    if settings.machines.cluster == "local":
        raise UsageError("--detach needs SLURM: local jobs end with their driver; leave it out, or say --cluster slurm")
    for name in ("budget", "notify", "metrics_file", "otlp"):
        if getattr(settings.machines, name):
            raise UsageError(
                f"{chosen[name].source} needs a driver, and with --detach there is none; leave one of them out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a submit asks for, before anything is written. `found`: the run that is there; `path`: the accepted rows.

    `references`: what is known of all of them; None if nothing new is. `with_references`: whether there are any.
    `channels`: who is told how it ends.
    """

    settings: RunSettings
    rules: RunRules
    bucket: Bucket
    found: Run | None
    asked: Run
    growth: Growth | None
    path: Path
    references: Mapping[str, KnownReference] | None
    with_references: bool
    channels: Sequence[Webhook | Mail]


def _carry_out(
    wanted: _Wanted,
    arguments: argparse.Namespace,
    stack: ExitStack,
    screen: Screen,
    *,
    waited: list[Cluster],
) -> int | None:
    """Claims the run, writes what is new and renders it. None if all must be asked anew, since others were at work."""
    settings, bucket, found, growth = wanted.settings, wanted.bucket, wanted.found, wanted.growth
    run_id = (found or wanted.asked).run_id
    cluster = _open_cluster(wanted, run_id, waited)
    claim = stack.enter_context(claimed(bucket, screen))
    if found and find_run(bucket) != found:
        return None  # another submit has changed the run, or taken it back, while this one waited
    keys = frozenset(read_keys(str(wanted.path)))
    if found:
        if growth:
            refuse_while_at_work(bucket, found, wanted.asked, find_at_work(bucket, cluster, screen))
        _mend(bucket, keys, settings, screen)
    progress = read_progress(bucket, keys, settings.render.max_attempts)
    at_work = find_at_work(bucket, cluster, screen)
    # A driver that has rendered all of its clips still lives for a while.
    left = at_work.left_to_others & (keys - progress.recorded - progress.not_rendered)
    tell_at_work(at_work, left, screen)
    work = plan_work(settings, wanted.rules, wanted.path, progress, bucket, at_work=at_work.keys)
    _tell_choices(settings, work, screen)
    budget = budget_of(bucket, prices_of(settings.machines))
    if work.num_clips:
        budget.refuse_if_spent()
    # Jobs get the certificate for tries that is made here; run.json says what was asked for.
    signing = with_certificate(settings, work_folder(run_id))
    run_, is_new = start_or_grow(bucket, found, wanted.asked, settings, growth)
    if run_.run_id != run_id:
        cluster = _open_cluster(wanted, run_.run_id, waited)
    _tell_store(bucket, screen)
    if wanted.references is not None:
        keep_references(bucket, wanted.references)
    write_manifest(bucket, wanted.path, run_, growth, screen)
    if growth and settings.render.plain_videos:
        settle_plain_names(bucket, growth, progress.recorded)
    numbers = create_shards(bucket, work.shards, wanted.path)
    submission = Submission(
        settings=signing,
        rules=wanted.rules,
        bucket=bucket,
        run=run_,
        is_new=is_new,
        keys=keys,
        left_out=len(progress.recorded),
        again=bool(progress.again),
        at_work=at_work,
        growth=growth,
        budget=budget,
        channels=wanted.channels,
        prune=arguments.prune,
        parsable=arguments.parsable,
        screen=screen,
    )
    told = None
    if numbers or at_work.orphans:
        code = render(submission, cluster, work, numbers, claim, detach=arguments.detach)
        if arguments.detach or code == Exit.INTERRUPTED or not left:
            return code
    elif growth or arguments.prune:
        forget_left(submission)
        told = write_report(bucket, run_, keys)
    if left and not arguments.detach:
        claim.release()
        wait_for_others(bucket, keys, at_work, cluster, screen)
        return None
    return end_without_jobs(submission, progress, told=told)


def _open_channels(settings: RunSettings, chosen: Mapping[str, Chosen]) -> tuple[Webhook | Mail, ...]:
    """Returns who is told how the submit ends. Raises UsageError if that, or what machines are told, cannot be."""
    if wrong := check_signals(settings.machines, variables()):
        name, problem = wrong
        raise UsageError(f"{chosen[name].source} {problem}")
    try:
        return open_channels(settings.machines.notify, variables())
    except ValueError as error:
        raise UsageError(f"{chosen['notify'].source} {error}") from error


def _open_cluster(wanted: _Wanted, run_id: str, waited: list[Cluster]) -> Cluster:
    """Opens a run's cluster, which knows from here on when the run is cancelled.

    Raises CancelledError if that was done since an earlier round opened one: its jobs would come back.
    """
    cluster = open_cluster(wanted.settings, work_folder(run_id), with_references=wanted.with_references)
    for earlier in waited:
        earlier.refuse_if_cancelled()
    waited.append(cluster)
    return cluster


def _asked(chosen: Mapping[str, Chosen]) -> dict[str, object]:
    return {name: chosen[name].value for name in ("compile", "decode")}


def _tell_kept(begin: Beginning, screen: Screen) -> None:
    for model, told in begin.told.items():
        screen.note(f"kept outputs of {model}: {told}")


def _with_reasons(settings: RunSettings, begin: Beginning, now: Beginning) -> RunSettings:
    # Where two choices lead to each other, the later one stands, with its own reasons.
    weighed = begin.weighed if begin.pixels == now.pixels else now.weighed
    return replace(settings, render=replace(settings.render, weighed=weighed))


def _begun_notes(settings: RunSettings, rules: RunRules, chosen: Mapping[str, Chosen]) -> list[str]:
    return begun_notes(settings, rules, [name for name, each in chosen.items() if each.source != "default"])


def _tell_choices(settings: RunSettings, work: PlannedWork, screen: Screen) -> None:
    for model, choice in settings.render.weighed.items():
        screen.note(f"{model}: {choice.why}")
    screen.note(f"mesh: {work.choice.reason}")
    tell_warnings(work.warnings, screen)


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


def _tell_store(bucket: Bucket, screen: Screen) -> None:
    if not bucket.exclusive:
        screen.note(
            f"{bucket.url}: the store writes over what exists even if it is asked not to (S3: If-None-Match), so files are "
            "looked for before they are created; submits of this run take turns"
        )


def _tell_weights(rules: RunRules, found: Run | None, screen: Screen) -> None:
    begun = found.weights if found else {}
    for name, weights in rules.weights.items():
        if weights.digest == NOT_LOOKED_AT:
            screen.note(f"weights of {name}: the hub's, looked up when this is submitted without --dry-run")
        elif weights.pinned != weights.asked:
            as_before = ", as when this run began" if begun.get(name) == weights else ""
            screen.note(f"weights of {name}: {weights.pinned}{as_before}")
        if weights.loras:
            screen.note(f"LoRAs of {name}: {weights.loras_text}")
        for text, loras in weights.row_loras.items():
            screen.note(f"LoRAs of rows of {name} that say {text}: {loras_text(loras)}")


def _dry_run(wanted: _Wanted, accepted: AcceptedManifest, screen: Screen) -> int:
    settings, bucket, path = wanted.settings, wanted.bucket, wanted.path
    progress = read_progress(bucket, frozenset(read_keys(str(path))), settings.render.max_attempts)
    work = plan_work(settings, wanted.rules, path, progress, bucket)
    folder = planned_folder(wanted.found.run_id if wanted.found else None)
    show_dry_run(
        settings,
        work,
        progress=progress,
        accepted=accepted,
        answers=slurm_answers(settings, work, folder, with_references=wanted.with_references),
        growth=wanted.growth,
        budget=budget_of(bucket, prices_of(settings.machines)),
        screen=screen,
    )
    return Exit.OK
