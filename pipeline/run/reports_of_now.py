"""What the jobs' reports say of the clips that a run has now: a clip may have been rendered again since, or have left."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jobs.reports.report_speedup import baselines_of, measured_speedup

Json = dict[str, Any]


def reports_of_now(reports: Sequence[Json], recorded: Collection[str]) -> list[Json]:
    """Returns the reports with clips, samples, factors and the guard's counts of clips that count now, each once.

    `reports`: by shard, the oldest first: of a clip that stands in several the newest counts. `recorded`: keys of the clips
    that the run has rendered. What else a report says, such as its jobs' seconds, stays as it is.
    """
    newest = {_key(row): at for at, report in enumerate(reports) for row in _rendered(report)}
    return [
        _without(report, {key for row in _rendered(report) if newest[key := _key(row)] != at or key not in recorded})
        for at, report in enumerate(reports)
    ]


def _without(report: Json, gone: Collection[str]) -> Json:
    """Returns a report without some of its rendered clips."""
    if not gone:
        return report
    rows = [row for row in report["clips"] if row["outcome"] != "rendered" or _key(row) not in gone]
    baselines = [each for each in baselines_of(report) if _key(each) not in gone]
    left = [row for row in _rendered(report) if _key(row) in gone]
    return {
        **report,
        "clips": rows,
        "baseline": baselines[0] if baselines else None,
        "baselines": baselines,
        "speedup": {
            **report["speedup"],
            "measured": measured_speedup(baselines),
            "derived": _derived(report["speedup"].get("derived"), rows),
        },
        "guard": [found for each in report.get("guard", ()) if (found := _guarded(each, rows, left))],
    }


def _derived(before: Json | None, rows: Sequence[Json]) -> Json | None:
    told = [row for row in rows if row.get("pab_factor_derived") is not None]
    if before is None or not told:
        return None
    # Reports of before have settled no steps.
    settled: list[float] = [row["settled_s"] if "settled_s" in row else row["denoise_s"] for row in told]
    with_broadcast, without = sum(settled), sum(row["derived_baseline_s"] for row in told)
    factor = round(without / with_broadcast, 5) if with_broadcast else None
    return {
        **before,
        "pab_factor": factor,
        "clips": len(told),
        "denoise_s": with_broadcast,
        "baseline_denoise_s": without,
    }


def _guarded(decided: Json, rows: Sequence[Json], left: Sequence[Json]) -> Json | None:
    """Returns a decision of the guard with the clips that count now; None if all clips of its plan have gone."""
    gone = [row for row in left if _is_of(decided, row)]
    if not gone:
        return decided
    if not any(_is_of(decided, row) for row in rows):
        return None
    return {
        **decided,
        "clips": max(0, decided["clips"] - sum(row["rendered"] == decided["rendered"] for row in gone)),
    }


def _is_of(decided: Json, row: Json) -> bool:
    names = ("model", "broadcast", "num_steps")
    return all(decided[name] == row[name] for name in names)


def _rendered(report: Json) -> list[Json]:
    return [row for row in report["clips"] if row["outcome"] == "rendered"]


def _key(row: Mapping[str, Any]) -> str:
    return f"{row['clip_id']}.{row['digest']}"
