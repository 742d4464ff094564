"""The speedup report of a job: what its clips took, by step pattern, with and without broadcast, planned and counted.

It is made from the records of all clips of the shard, whichever start rendered them, from what each start measured of
itself, and from the samples of each plan that are rendered a second time without. Seconds are wall time, medians are over
clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from jobs.quality.alarm_counts import AlarmCounts
from jobs.quality.headline import quality_summary
from jobs.reports.report_broadcast import by_broadcast, distinct_plans
from jobs.reports.report_energy import energy_summary, joules_of
from jobs.reports.report_gallery import model_facts
from jobs.reports.report_headline import exchanges, headline, spans_of
from jobs.reports.report_measured import measured_times
from jobs.reports.report_speedup import ClipFactor, clip_factors, derived_speedup, difference, measured_speedup, reuses
from jobs.reports.report_times import batch_size, loop_s, steps_of
from jobs.store import layout
from manifests.clip import Clip
from pab.broadcast.rules import KINDS

SCHEMA = 1
Json = dict[str, Any]
_QUALITY = ("psnr_db", "ssim", "vmaf", "identical")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What a report is made from.

    `starts`: oldest first, as `start_facts` gives them. `baselines`: the measured ones. `guard`: what it decided.
    """

    shard: int
    run_id: str
    mesh: str
    ranks: int
    ranks_per_clip: int
    clips: Sequence[Clip]
    records: Mapping[str, Json]
    failed: Mapping[str, str]
    starts: Sequence[Json]
    baselines: Sequence[Json]
    guard: Sequence[Json] = ()


def build_report(facts: JobFacts) -> Json:
    """Returns the report as JSON values."""
    records = [facts.records[clip.key] for clip in facts.clips if clip.key in facts.records]
    pairs = list(zip(records, clip_factors(records), strict=True))
    factors = {record["digest"]: each for record, each in pairs}
    return {
        "schema": SCHEMA,
        "job": layout.job_name(facts.shard),
        "shard": facts.shard,
        "run_id": facts.run_id,
        "mesh": facts.mesh,
        "ranks": facts.ranks,
        "ranks_per_clip": facts.ranks_per_clip,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": {
            "clips": len(facts.clips),
            "rendered": len(records),
            "failed": len(facts.failed),
            "left": len(facts.clips) - len(records) - len(facts.failed),
        },
        "seconds_by_stage": _stages(records),
        "step_seconds": _step_seconds(records),
        "speedup": _speedup(pairs, facts.baselines),
        "quality": quality_summary(facts.baselines),
        "alarms": _alarms(records),
        "guard": [_guarded(decided, records) for decided in facts.guard],
        "baseline": facts.baselines[0] if facts.baselines else None,
        "baselines": list(facts.baselines),
        "throughput": _throughput(records, facts),
        **_headline(records, facts),
        "exchanges": exchanges(records),
        "energy": energy_summary(record.get("energy") for record in records),
        "batches": _batches(records),
        "measured": measured_times(records, facts.starts),
        "calls": _calls(records),
        "all_to_alls": _all_to_alls(records),
        "plans": distinct_plans(records),
        "models": model_facts(records),
        "broadcasts": by_broadcast(pairs, facts.baselines),
        "kept_bytes_peak": max((record["kept_bytes_peak"] for record in records), default=0),
        "warm_up_s": _rounded(sum(start["warm_up_s"] for start in facts.starts)),
        "compiled_graphs": sum(start["compiled"]["graphs"] for start in facts.starts if start.get("compiled")),
        "starts": list(facts.starts),
        "clips": [_clip_row(clip, facts, factors) for clip in facts.clips],
    }


def _step_seconds(records: Iterable[Json]) -> Json:
    """Returns, by pattern with the most work first, the spread over clips of a clip's median step, and all its seconds."""
    medians: dict[str, list[float]] = {}
    totals: dict[str, float] = {}
    for record in records:
        own: dict[str, list[float]] = {}
        for pattern, seconds in steps_of(record):
            own.setdefault(pattern, []).append(seconds)
        for pattern, of_clip in own.items():
            medians.setdefault(pattern, []).append(median(of_clip))
            totals[pattern] = totals.get(pattern, 0.0) + sum(of_clip)
    names = sorted(medians, key=lambda pattern: (pattern.count("."), pattern))
    return {name: {**_spread(medians[name]), "sum": _rounded(totals[name])} for name in names}


def _stages(records: Sequence[Json]) -> Json:
    names = dict.fromkeys(stage for record in records for stage in record["seconds"])
    return {name: _spread([record["seconds"].get(name, 0.0) for record in records]) for name in names}


def _spread(seconds: Sequence[float]) -> Json:
    return {
        "median": _rounded(median(seconds)),
        "min": _rounded(min(seconds)),
        "max": _rounded(max(seconds)),
        "sum": _rounded(sum(seconds)),
        "clips": len(seconds),
    }


def _speedup(pairs: Sequence[tuple[Json, ClipFactor]], baselines: Sequence[Json]) -> Json:
    measured, derived = measured_speedup(baselines), derived_speedup(pairs)
    return {
        "broadcast_clips": sum(reuses(record) for record, _ in pairs),
        "measured": measured,
        "derived": derived,
        "difference": difference(measured, derived),
    }


def _throughput(records: Sequence[Json], facts: JobFacts) -> Json:
    busy_s = sum(record["seconds"].get(stage, 0.0) for record in records for stage in ("denoise", "decode"))
    gpu_hours = busy_s * facts.ranks_per_clip / 3600
    wall_s = sum(start["wall_s"] - start["baseline_s"] for start in facts.starts)
    rendered = sum(start["rendered"] for start in facts.starts)
    wall_hours = wall_s * facts.ranks / 3600
    # Reports of starts before a device's share was measured have none.
    busy = [start["device_busy"] for start in facts.starts if start.get("device_busy")]
    window_s = sum(each["window_s"] for each in busy)
    return {
        "clips_per_gpu_hour": _rounded(len(records) / gpu_hours) if gpu_hours else None,
        "clips_per_gpu_hour_with_loading": _rounded(rendered / wall_hours) if rendered and wall_hours else None,
        "device_busy_share": _rounded(sum(each["busy_s"] for each in busy) / window_s) if window_s else None,
        "gpu_seconds": _rounded(gpu_hours * 3600),
        "wall_s": _rounded(wall_s),
        "how": "denoise and decode of all clips on all their ranks; with loading: whole starts that ended, "
        "without the baseline; busy: denoising and decoding, of the time from the first clip's end to the last one's",
    }


def _headline(records: Sequence[Json], facts: JobFacts) -> Json:
    spans = spans_of(records, facts.starts, facts.ranks)
    return {"headline": headline(spans), "spans": spans}


def _batches(records: Sequence[Json]) -> list[Json]:
    """Returns, by size of batch, how many clips were rendered in such, and the seconds of denoising that each took."""
    by_size: dict[int, list[float]] = {}
    for record in records:
        by_size.setdefault(batch_size(record), []).append(loop_s(record))
    return [
        {"size": size, "clips": len(seconds), "denoise_s_per_clip": _rounded(median(seconds))}
        for size, seconds in sorted(by_size.items())
    ]


def _calls(records: Sequence[Json]) -> Json:
    kinds = {
        kind: {
            "total": sum(r["planned"]["computed"][kind] + r["planned"]["reused"][kind] for r in records),
            "planned": sum(r["planned"]["computed"][kind] for r in records),
            "counted": sum(r["counted"]["computed"][kind] for r in records),
        }
        for kind in KINDS
    }
    agree = all(r["planned"][what] == r["counted"][what] for r in records for what in ("computed", "reused"))
    return {"by_kind": kinds, "agree": agree}


def _all_to_alls(records: Sequence[Json]) -> Json:
    sent = sum(record["counted"]["all_to_all_bytes"] for record in records)
    without = 0.0
    for record in records:
        counted, whole = record["counted"]["all_to_alls"], record["planned"]["all_to_alls_without_broadcast"]
        without += record["counted"]["all_to_all_bytes"] * whole / counted if counted else 0
    return {
        "planned": sum(record["planned"]["all_to_alls"] for record in records),
        "counted": sum(record["counted"]["all_to_alls"] for record in records),
        "without_broadcast": sum(record["planned"]["all_to_alls_without_broadcast"] for record in records),
        "agree": all(record["planned"]["all_to_alls"] == record["counted"]["all_to_alls"] for record in records),
        "bytes": sent,
        "bytes_without_broadcast": round(without),
        "how": "of one rank per clip; bytes without broadcast: the counted bytes per all-to-all, times all of them",
    }


def _alarms(records: Iterable[Json]) -> Json:
    counts = AlarmCounts()
    for record in records:
        # Records of earlier versions say nothing of alarms.
        counts.add(record["clip_id"], record.get("alarms"), record["video"]["path"])
    return counts.facts()


def _guarded(decided: Json, records: Iterable[Json]) -> Json:
    """Returns a decision of the guard with the number of clips that were rendered with a milder plan."""
    asked = (decided["model"], decided["broadcast"], decided["num_steps"])
    stepped = [record for record in records if record["plan"].get("stepped_down")]
    clips = sum(
        asked == (record["clip"]["model"], record["plan"]["broadcast"], record["clip"]["num_steps"])
        for record in stepped
    )
    return {**decided, "clips": clips}


def _clip_row(clip: Clip, facts: JobFacts, factors: Mapping[str, ClipFactor]) -> Json:
    row: Json = {
        "clip_id": clip.clip_id,
        "digest": clip.digest,
        "model": clip.model,
        "broadcast": clip.broadcast,
        "size": f"{clip.num_frames}x{clip.height}x{clip.width}" + (f", {clip.loops} loops" if clip.loops > 1 else ""),
        "num_steps": clip.num_steps,
    }
    record = facts.records.get(clip.key)
    if record is None:
        reason = facts.failed.get(clip.key)
        return {**row, "outcome": "left" if reason is None else "failed", "reason": reason}
    found = factors[record["digest"]]
    compared = next((each for each in facts.baselines if each["digest"] == record["digest"]), None)
    return {
        **row,
        "outcome": "rendered",
        "attempt": record["attempt"],
        "batch": batch_size(record),
        "elapsed_s": record["elapsed_s"],
        "plan": record["plan"]["digest"],
        "denoise_s": _rounded(loop_s(record)),
        "settled_s": _rounded(found.settled.seconds),
        "derived_baseline_s": None if found.baseline_s is None else _rounded(found.baseline_s),
        "pab_factor_derived": None if found.factor is None or not reuses(record) else _rounded(found.factor),
        "quality": None if compared is None else {name: compared.get(name) for name in _QUALITY},
        "alarms": record.get("alarms"),
        "rendered": record["plan"].get("rendered", record["plan"]["broadcast"]),
        "video": record["video"]["path"],
        **{name: record["video"][name] for name in ("poster", "without_reuse", "c2pa") if name in record["video"]},
        "log": layout.log_of(record["job"]),
        "size_bytes": record["video"]["size_bytes"],
        "joules": joules_of(record.get("energy")),
        "warnings": record["warnings"],
    }


def _rounded(value: float) -> float:
    return round(value, 5)
