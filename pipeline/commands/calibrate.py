"""`calibrate`: searches a static plan on a user's prompts and writes it as a file that `submit --broadcast` takes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.devices import has_gpu
from jobs.media.reference_access import ReferenceAccess
from jobs.render_settings import RenderSettings
from jobs.rendering.clip_loras import clip_loras
from manifests.clip import Clip
from manifests.read import iter_clips
from manifests.sources.files import source_name, source_place
from pab.broadcast.rules import read_rules
from pab.broadcast.step_rules import StepRules
from pab.family import Family
from pipeline.commands.manifest import accepted_manifest, tell_warnings
from pipeline.commands.sources import opened_source
from pipeline.exits import Exit, UsageError
from pipeline.run.build import build_settings
from pipeline.run.environment import environment_settings, variables
from pipeline.run.libraries import check_libraries, check_torch
from pipeline.run.options import choose
from pipeline.run.references import ReferenceReader
from pipeline.run.results import make_folder, write_result
from pipeline.run.rules import RunRules, run_rules
from pipeline.run.run import versions
from pipeline.screen import Screen

if TYPE_CHECKING:
    from jobs.calibration.calibrate import Calibration, Target

_READ_ROWS = 1024
_HEAD_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The clips that are searched on, and those that judge."""

    searched: tuple[Clip, ...]
    held_out: tuple[Clip, ...]


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `calibrate`: 1 when the plan that was found does not hold --min-psnr on held-out prompts, else 0."""
    _check(arguments)
    page = arguments.report or arguments.plan.with_suffix(".html")
    _check_files(arguments.plan, page, arguments.prompts)
    # Jobs here: what this process can use decides, not what SLURM has.
    chosen = choose({**vars(arguments), "cluster": "local", "output": None}, environment_settings())
    settings = build_settings(source_name(arguments.prompts), chosen, place=source_place(arguments.prompts)).render
    gpu_here = has_gpu(variables())
    tell_warnings(check_torch(settings.device, chosen["device"], here=True, gpu_here=gpu_here), screen)
    rules = run_rules(settings)
    references = rules.families[settings.model].references
    if references is not None and references.required:
        raise UsageError(
            f"--model {settings.model}: its clips begin with an image, and calibrate renders from prompts alone; "
            "name a model that needs none"
        )
    prompts = _prompts(arguments, settings, rules, screen)
    check_libraries({settings.model: rules.pinned_weights().get(settings.model)}, here=True)
    found = _calibrate(arguments, settings, rules, prompts, screen)
    _write_plan(arguments.plan, found)
    from jobs.reports.calibration_html import calibration_page

    write_result(page, calibration_page(found, versions()))
    document = {"plan": str(arguments.plan), "report": str(page), "holds": found.holds, **_about(found)}
    screen.result(document, _text(found, arguments.plan, page))
    if not found.holds:
        psnr = found.rows[0].psnr_db
        screen.note(
            f"the plan misses --min-psnr {arguments.min_psnr:g} on held-out prompts (median {psnr.median:.1f} dB, worst "
            f"{psnr.least:.1f} dB); search on more --clips, or ask for more dB"
        )
    return Exit.OK if found.holds else Exit.ERROR


def _check(arguments: argparse.Namespace) -> None:
    for flag, least in (("clips", 1), ("held_out", 1), ("block_ranges", 1), ("probe_every", 1)):
        if getattr(arguments, flag) < least:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(arguments, flag)}, needs {least} or more")
    if arguments.plan.suffix != ".json":
        raise UsageError(f"--output {arguments.plan}, needs a name that ends in .json: submit --broadcast tells by it")


def _check_files(plan: Path, page: Path, prompts: Sequence[str]) -> None:
    """Raises UsageError where a file to write would replace another kind of file, or cannot be written.

    Before the search, which may take hours. An older plan and its page are replaced.
    """
    if plan.resolve() == page.resolve():
        raise UsageError(f"--report {page}: is --output too; give the page another name")
    for flag, path, is_own in (("--output", plan, _is_plan), ("--report", page, _is_page)):
        if any(path.resolve() == Path(each).resolve() for each in prompts):
            raise UsageError(f"{flag} {path}: is the file of prompts; give another name")
        make_folder(path.parent, flag=f"{flag} {path}: folder")
        if path.exists() and not is_own(path):
            raise UsageError(f"{flag} {path}: exists, and calibrate did not write it; give another name")


def _is_plan(path: Path) -> bool:
    try:
        return isinstance(read_rules(path), StepRules)
    except ValueError:
        return False


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"<title>plan " in file.read(_HEAD_BYTES)


def _presets(arguments: argparse.Namespace, family: Family) -> tuple[str, ...] | None:
    if arguments.presets is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in arguments.presets.split(",")))
    if unknown := [name for name in names if name not in family.presets]:
        raise UsageError(
            f"--presets {unknown[0]!r} is no preset of {family.name}, allowed: {', '.join(family.presets)}"
        )
    return names


def _target(arguments: argparse.Namespace, family: Family) -> Target:
    from jobs.calibration.calibrate import Target

    match = arguments.match
    if match is None and arguments.computed_share is None and arguments.min_psnr is None:
        match = family.defaults.broadcast
    if match is not None and match not in family.presets:
        raise UsageError(f"--match {match!r} is no preset of {family.name}, allowed: {', '.join(family.presets)}")
    try:
        return Target(match=match, computed_share=arguments.computed_share, min_psnr_db=arguments.min_psnr)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _calibrate(
    arguments: argparse.Namespace, settings: RenderSettings, rules: RunRules, prompts: Prompts, screen: Screen
) -> Calibration:
    from jobs.calibration.calibrate import CalibrationRequest, Calibrator
    from jobs.rendering.loops import clip_requests

    family = rules.families[settings.model]
    if arguments.plan.stem in family.presets:
        raise UsageError(f"--output {arguments.plan}: {arguments.plan.stem!r} is a preset of {family.name}; rename it")
    request = CalibrationRequest(
        family=family,
        weights=rules.pinned_weights().get(family.name),
        loras=clip_loras(prompts.searched[0], rules.pinned_loras().get(family.name, ())),
        precision=settings.precision_of(family),
        device=settings.device,
        searched=tuple(clip_requests(clip)[0] for clip in prompts.searched),
        held_out=tuple(clip_requests(clip)[0] for clip in prompts.held_out),
        target=_target(arguments, family),
        reuses=arguments.reuse,
        ranges=arguments.block_ranges,
        probe_every=arguments.probe_every,
        max_minutes=arguments.max_minutes,
        presets=_presets(arguments, family),
    )
    keep = partial(_write_plan, arguments.plan)
    try:
        return Calibrator(request=request, tell=screen.note, keep=keep).run()
    except ValueError as error:
        raise UsageError(str(error)) from error


def _prompts(arguments: argparse.Namespace, settings: RenderSettings, rules: RunRules, screen: Screen) -> Prompts:
    """Takes the first rows of the family with different prompts. Raises UsageError where they are too few or unlike."""
    reader = ReferenceReader(ReferenceAccess.of(settings))
    with (
        opened_source(arguments, arguments.prompts, screen, model=settings.model) as source,
        accepted_manifest(source, rules, model=settings.model, read_references=reader) as (accepted, path),
    ):
        tell_warnings(accepted.warnings, screen)
        clips = list(_different(path, settings.model, arguments.clips + arguments.held_out))
    needed = arguments.clips + arguments.held_out
    if len(clips) < needed:
        raise UsageError(
            f"{source_name(arguments.prompts)} has {len(clips)} different prompts of {settings.model}, needed are {needed}: "
            f"--clips {arguments.clips} to search on and --held-out {arguments.held_out} to judge by; add prompts, or "
            "take fewer"
        )
    for clip in clips:
        if _size(clip) != _size(clips[0]):
            raise UsageError(
                f"clip {clip.clip_id} has {_told(clip)}, clip {clips[0].clip_id} has {_told(clips[0])}; a plan is sought "
                "for one size and number of steps: calibrate rows of one kind"
            )
        if clip.sampling is not None and rules.rows[clip.model].samplings[clip.sampling].num_steps is not None:
            raise UsageError(
                f"clip {clip.clip_id} has sampling {clip.sampling}, which reuses nothing, so there is no plan to seek; leave "
                "it out"
            )
        if clip.references:
            raise UsageError(
                f"clip {clip.clip_id} has references; calibrate renders from prompts alone, leave such rows out"
            )
    return Prompts(searched=tuple(clips[: arguments.clips]), held_out=tuple(clips[arguments.clips :]))


def _different(path: Path, model: str, count: int) -> Iterator[Clip]:
    seen: set[str] = set()
    for clip in iter_clips(str(path), batch_rows=_READ_ROWS):
        if clip.model == model and clip.prompt not in seen:
            seen.add(clip.prompt)
            yield clip
            if len(seen) == count:
                return


def _size(clip: Clip) -> tuple[object, ...]:
    sampled = clip.sampling, clip.flow_shift, clip.lora
    return clip.num_frames, clip.height, clip.width, clip.num_steps, clip.guidance_scale == 1.0, *sampled


def _told(clip: Clip) -> str:
    guided = "no guidance" if clip.guidance_scale == 1.0 else "guidance"
    sampled = f", sampling {clip.sampling}" if clip.sampling else ""
    sampled += "" if clip.flow_shift is None else f", flow_shift {clip.flow_shift:g}"
    sampled += "" if clip.lora is None else f", lora {clip.lora}"
    return f"{clip.num_frames} frames, {clip.width}x{clip.height}, {clip.num_steps} steps, {guided}{sampled}"


def _about(found: Calibration) -> dict[str, object]:
    """Returns how a plan was found and what it does, as JSON values; nothing of it changes what the plan means."""
    request, clip = found.request, found.request.searched[0]
    return {
        "digest": found.rules.digest,
        "model": request.family.name,
        "weights": request.weights,
        "loras": [str(lora) for lora in request.loras],
        "precision": request.precision,
        "size": {name: getattr(clip, name) for name in ("num_frames", "height", "width", "num_steps")},
        "target": str(request.target),
        "reuses": request.reuses,
        "searched_clips": len(request.searched),
        "searched_psnr_db": _finite(found.searched_psnr_db),
        "held_out": found.to_rows(),
        **({"left_out": list(found.left_out)} if found.left_out else {}),
        **({"unfinished": list(found.unfinished)} if found.unfinished else {}),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def _finite(value: float) -> float | None:
    # JSON has no infinity: None is "the same frames".
    return round(value, 3) if abs(value) != float("inf") else None


def _text(found: Calibration, plan: Path, page: Path) -> str:
    lines = [found.plan.table(), f"compiled graphs: {found.plan.graphs}", "", "on held-out prompts, against no reuse:"]
    lines += [f"  {row.line()}" for row in found.rows]
    lines += [f"left out by --max-minutes: {what}" for what in found.left_out]
    return "\n".join([*lines, "", f"plan {found.rules.digest} in {plan}, what was measured in {page}"])


def _write_plan(path: Path, found: Calibration) -> None:
    write_result(path, json.dumps({**found.rules.to_dict(), "about": _about(found)}, indent=1) + "\n")
