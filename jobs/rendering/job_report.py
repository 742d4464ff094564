"""What one start of a job measures, and the job's report, which also includes its earlier starts."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from jobs.media.picture import png, strip
from jobs.outcome import Failed, Rendered, ShardOutcome
from jobs.quality.alarms import alarms_of, pixel_statistics
from jobs.quality.compare import alike_facts
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_work import render_baseline
from jobs.rendering.context import JobContext, versions
from jobs.rendering.frames import DeviceUse
from jobs.rendering.guard_decisions import final_samples
from jobs.rendering.loaded_family import LoadedFamily
from jobs.rendering.todo import Todo
from jobs.reports.report import JobFacts, build_report
from jobs.reports.report_html import report_page
from jobs.reports.report_speedup import baselines_of
from jobs.reports.report_times import settle, warm_up_s
from jobs.store import layout
from jobs.store.bucket import DamagedError
from jobs.version import other_than
from pab.execution.compiled import Compiled
from pab.model import NotFiniteError

Json = dict[str, Any]


@dataclass(slots=True)
class Measures:
    """One rank's measurements of this start, filled in while it runs.

    `program`: what ran, as `jobs.version.program` names it. `precision`: of the family that was loaded last; None before one
    was. `baseline_s`: seconds of rendering samples without
    reuse, and by plans that were not good enough, and of comparing.
    `strip_png`: a picture of the first sample: frames without broadcast above the same frames with it.
    """

    program: str = ""
    load_s: dict[str, float] = field(default_factory=dict)
    precision: str | None = None
    prompts_s: float = 0.0
    compiled: Compiled = field(default_factory=Compiled)
    device_use: DeviceUse = field(default_factory=DeviceUse)
    baseline_s: float = 0.0
    strip_png: bytes | None = None
    peak_rss_bytes: int = 0
    peak_cuda_bytes: int = 0

    def take_peaks(self) -> None:
        """Stores this process's peak memory so far."""
        self.peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self.peak_cuda_bytes = torch.cuda.max_memory_allocated()

    def render_baseline(self, loaded: LoadedFamily, rendered: Attempt, context: JobContext) -> Attempt:
        """Renders a clip again without broadcast and returns the result. Collective over the clip's ranks."""
        start = time.perf_counter()
        baseline = render_baseline(loaded, rendered, settings=context.settings, group=context.ranks.node)
        self.baseline_s += time.perf_counter() - start
        return baseline

    def compare(self, rendered: Attempt, baseline: Attempt, error: NotFiniteError | None) -> Json | None:
        """Compares a sample with itself without reuse; None if that is not finite. Only the clip's root has the frames.

        `error`: of a sample whose latents are not finite, and that has no frames.
        """
        start = time.perf_counter()
        try:
            reference = baseline.coming.fetch()
        except NotFiniteError:
            return None
        try:
            frames = None if error is not None else rendered.coming.fetch()
        except NotFiniteError as at_decode:
            frames, error = None, at_decode
        if frames is None:
            facts = _not_finite(rendered, str(error))
        else:
            facts = compare(rendered, baseline)
            self.strip_png = self.strip_png or png(strip([reference, frames]))
        facts["baseline_alarms"] = list(alarms_of(pixel_statistics(reference)))
        self.baseline_s += time.perf_counter() - start
        return facts


def _not_finite(rendered: Attempt, message: str) -> Json:
    """Returns what stands for a sample under reuse that is not finite, while it is without."""
    clip = rendered.clip
    return {
        "clip_id": clip.clip_id,
        "digest": clip.digest,
        "clip": asdict(clip),
        "rendered": rendered.instead or clip.broadcast,
        "computed_share": 0.0,
        "not_finite": message,
        "alarms": [],
        **dict.fromkeys(("psnr_db", "ssim", "vmaf", "no_vmaf")),
        "identical": False,
    }


def compare(rendered: Attempt, baseline: Attempt) -> Json:
    """Returns a rendered clip beside its baseline as JSON values. Only the clip's root has the frames to do so."""
    clip, frames, reference = rendered.clip, rendered.coming.fetch(), baseline.coming.fetch()
    return {
        "clip_id": clip.clip_id,
        "digest": clip.digest,
        "clip": asdict(clip),
        "steps": _steps(baseline),
        "denoise_s": round(sum(baseline.denoised.step_seconds), 6),
        "decode_s": round(baseline.coming.decode_s, 6),
        "broadcast_steps": _steps(rendered),
        "broadcast_denoise_s": round(sum(rendered.denoised.step_seconds), 6),
        "graphs": baseline.compiled.graphs,
        "broadcast_graphs": rendered.compiled.graphs,
        "rendered": rendered.instead or clip.broadcast,
        "computed_share": _computed_share(rendered),
        "less": rendered.less is not None,
        "not_finite": None,
        "alarms": list(alarms_of(pixel_statistics(frames))),
        **alike_facts(reference, frames, threads=torch.get_num_threads()),
    }


def _computed_share(rendered: Attempt) -> float:
    # Under Foresight loops have plans of their own.
    return sum(loop.plan.computed_share for loop in rendered.loops) / len(rendered.loops)


def _steps(rendered: Attempt) -> Json:
    return {"pattern": list(rendered.patterns), "seconds": [round(s, 6) for s in rendered.denoised.step_seconds]}


def leave_report(
    context: JobContext,
    todo: Todo,
    outcome: ShardOutcome,
    measures: list[Measures],
    wall_s: float,
    *,
    decisions: Iterable[Json] = (),
) -> Json:
    """Writes the job's report and its page, and returns the report.

    `measures`: one entry per rank, in rank order. `decisions`: of the job's guard, about the plans of this start.
    """
    bucket, shard = context.bucket, context.shard
    earlier = _earlier(context)
    records = bucket.records(clip.key for clip in todo.order)
    own = _own_records(context, records)
    before = baselines_of(earlier)
    known = {baseline["digest"] for baseline in before}
    guard = _joined_guard(earlier, decisions)
    samples = [sample for each in decisions for sample in final_samples(each) if sample["digest"] not in known]
    baselines = [*before, *(_settled(sample, own) for sample in samples if not sample["less"] and "steps" in sample)]
    # The strip shows the first of them.
    picture = None if before else next((rank.strip_png for rank in measures if rank.strip_png), None)
    starts = list(earlier.get("starts", ()))
    if measures[0].load_s:
        starts.append(_start_facts(context, outcome, measures, wall_s=wall_s, warm_up=warm_up_s(own)))
    report = build_report(
        JobFacts(
            shard=shard,
            run_id=context.settings.run_id,
            mesh=str(context.settings.mesh),
            ranks=context.ranks.place.world,
            ranks_per_clip=context.ranks.node.clip.size,
            clips=todo.order,
            records=records,
            failed={
                f"{clip.clip_id}.{clip.digest}": f"{clip.stage}: {clip.error}: {clip.message}"
                for clip in outcome.clips
                if isinstance(clip, Failed)
            },
            starts=starts,
            baselines=baselines,
            guard=guard,
        )
    )
    if picture is not None:
        bucket.write(layout.job_report(shard, "png"), picture)
    elif baselines and bucket.exists(layout.job_report(shard, "png")):
        picture = bucket.read(layout.job_report(shard, "png"))
    bucket.write_json(layout.job_report(shard), report)
    bucket.write(layout.job_report(shard, "html"), report_page(report, picture).encode())
    return report


def _earlier(context: JobContext) -> Json:
    try:
        return context.bucket.job_report(layout.job_name(context.shard))
    except (FileNotFoundError, DamagedError):
        return {}


def _joined_guard(earlier: Json, decisions: Iterable[Json]) -> list[Json]:
    # Of the samples only what was judged: how they were timed stands with the baselines.
    judged = ("clip_id", "digest", "psnr_db", "ssim", "vmaf", "identical", "alarms", "baseline_alarms", "not_finite")
    joined = {each["plan"]: each for each in earlier.get("guard", ())}
    for each in decisions:
        tried = [
            {**one, "samples": [{name: sample[name] for name in judged} for sample in one["samples"]]}
            for one in each["tried"]
        ]
        joined[each["plan"]] = {**each, "tried": tried}
    return list(joined.values())


def _own_records(context: JobContext, records: Mapping[str, Json]) -> list[Json]:
    place = context.ranks.place
    own = [r for r in records.values() if (r["job"]["job_id"], r["job"]["start"]) == (place.job_id, place.start)]
    return sorted((r for r in own if r["job"]["rank"] == 0), key=lambda record: str(record["started_at"]))


def _settled(baseline: Json, own: list[Json]) -> Json:
    # Only clips of this start: an earlier start may have run on another kind of device.
    others = [record for record in own if record["digest"] != baseline["digest"]]
    without, with_broadcast = (
        settle({"clip": baseline["clip"], "steps": baseline[steps], "execution": {"graphs": baseline[graphs]}}, beside)
        for steps, graphs, beside in (("steps", "graphs", ()), ("broadcast_steps", "broadcast_graphs", others))
    )
    return {
        **baseline,
        "settled_s": round(without.seconds, 6),
        "broadcast_settled_s": round(with_broadcast.seconds, 6),
        "samples": min(without.samples, with_broadcast.samples),
        "compiling": without.compiling or with_broadcast.compiling,
    }


def _start_facts(
    context: JobContext, outcome: ShardOutcome, measures: list[Measures], *, wall_s: float, warm_up: float
) -> Json:
    facts = context.facts()
    ended_here = [clip for clip in outcome.clips if isinstance(clip, Rendered)]
    return {
        **{name: facts[name] for name in ("job_id", "start", "host", "device", "ranks")},
        "precision": measures[0].precision or facts["precision"],
        "wall_s": round(wall_s, 3),
        "load_s": {name: round(seconds, 3) for name, seconds in measures[0].load_s.items()},
        "prompts_s": round(measures[0].prompts_s, 3),
        "warm_up_s": round(warm_up, 4),
        "baseline_s": round(measures[0].baseline_s, 3),
        "compiled": _compiled(measures),
        "weighed": {
            name: choice.why for name, choice in context.settings.render.weighed.items() if name in measures[0].load_s
        },
        "device_busy": _device_busy(measures),
        "rendered": len(ended_here),
        "left": len(outcome.left),
        "peak_rss_bytes": max(rank.peak_rss_bytes for rank in measures),
        "peak_cuda_bytes": max(rank.peak_cuda_bytes for rank in measures),
        "device_bytes": _device_bytes(context.ranks.node.device),
        "versions": versions(),
        "program": measures[0].program,
        "driver": context.settings.driver,
        "other_programs": _other_programs(context, measures),
    }


def _other_programs(context: JobContext, measures: list[Measures]) -> list[str]:
    # Nodes may each have an installation of their own.
    told = (other_than(context.settings.driver, rank.program) for rank in measures)
    return list(dict.fromkeys(each for each in told if each))


def _device_bytes(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _compiled(measures: list[Measures]) -> Json | None:
    # Every rank compiles for itself, all at the same time, so the job's seconds are those of the slowest rank.
    most = max((rank.compiled for rank in measures), key=lambda compiled: compiled.seconds)
    return {**asdict(most), "seconds": round(most.seconds, 3)} if most.graphs else None


def _device_busy(measures: list[Measures]) -> Json:
    uses = [rank.device_use for rank in measures]
    joined = DeviceUse(
        busy_s=sum(use.busy_s for use in uses),
        window_s=sum(use.window_s for use in uses),
        counted=sum(use.counted for use in uses),
        gaps_s=[gap for use in uses for gap in use.gaps_s],
    )
    return joined.facts()
