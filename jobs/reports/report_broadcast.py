"""What a job's clips reused, for its report: every distinct plan, and the ways of broadcasting beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median, median_low
from typing import Any

from jobs.quality.headline import quality_summary
from jobs.reports.report_speedup import ClipFactor, derived_speedup, factor_of, reuses
from pab.broadcast.rules import KINDS

Json = dict[str, Any]
_ALIKE = ("psnr_db", "ssim", "vmaf", "identical", "clip_id")


def decides_while_rendering(record: Json) -> bool:
    """Whether Foresight decided what a clip reuses, so that each clip has a plan of its own."""
    return "foresight" in record["plan"]["rules"]


def distinct_plans(records: Iterable[Json]) -> list[Json]:
    """Returns each distinct plan once, the most used first, with each step's pattern and median seconds.

    Of clips that decided while they were rendered those with the same rules and steps are told together: patterns and
    blocks are the first clip's, `different` says how many different decisions there were.
    """
    alike: dict[tuple[object, ...], list[Json]] = {}
    for record in records:
        plan = record["plan"]
        adaptive = decides_while_rendering(record)
        key = (plan["rules_digest"], plan["num_steps"], str(plan["total"])) if adaptive else (plan["digest"],)
        alike.setdefault(key, []).append(record)
    return [
        {
            **same[0]["plan"],
            "clips": len(same),
            "clip_id": same[0]["clip_id"],
            "different": len({record["plan"]["digest"] for record in same}),
            "patterns": same[0]["steps"]["pattern"][: same[0]["plan"]["num_steps"]],
            "step_median_s": [
                round(median(step), 5) for step in zip(*(s for r in same for s in _loop_seconds(r)), strict=True)
            ],
            "kinds": [kind for kind in KINDS if same[0]["plan"]["total"][kind]],
        }
        for same in sorted(alike.values(), key=len, reverse=True)
    ]


def _loop_seconds(record: Json) -> list[list[float]]:
    """Returns the seconds of each step, loop by loop: all loops of a clip have as many steps as its plan."""
    seconds, num_steps = record["steps"]["seconds"], record["plan"]["num_steps"]
    return [seconds[start : start + num_steps] for start in range(0, len(seconds), num_steps)]


def by_broadcast(pairs: Iterable[tuple[Json, ClipFactor]], baselines: Sequence[Json]) -> list[Json]:
    """Returns, per broadcast that clips name, what it computed, saved and changed."""
    named: dict[str, list[tuple[Json, ClipFactor]]] = {}
    for record, factor in pairs:
        named.setdefault(_name(record["plan"]), []).append((record, factor))
    measured: dict[str, list[Json]] = {}
    for baseline in baselines:
        measured.setdefault(_name({**baseline["clip"], **baseline}), []).append(baseline)
    return [_row(name, of, measured.get(name, [])) for name, of in named.items()]


def _name(plan: Mapping[str, Any]) -> str:
    asked, rendered = plan["broadcast"], plan.get("rendered")
    stepped = rendered not in (None, asked) and not plan.get("out_of_memory")
    return f"{asked}, rendered with {rendered}" if stepped else str(asked)


def _row(name: str, of: Sequence[tuple[Json, ClipFactor]], baselines: Sequence[Json]) -> Json:
    records = [record for record, _ in of]
    computed, total = (sum(sum(record["plan"][what].values()) for record in records) for what in ("computed", "total"))
    derived = derived_speedup(of)
    alarms = [record["alarms"] for record in records if "alarms" in record]
    return {
        "broadcast": name,
        "decided": "while rendering" if decides_while_rendering(records[0]) else "before",
        "clips": len(records),
        "computed_share": round(computed / total, 5),
        "factor_derived": derived["pab_factor"] if derived else None if any(map(reuses, records)) else 1.0,
        "note_derived": None if derived is None else derived["note"],
        "alarms": sum(map(bool, alarms)) if alarms else None,
        **_measured(baselines),
    }


def _measured(baselines: Sequence[Json]) -> Mapping[str, Any]:
    # What stands beside `quality` is of the clip that is least like itself. Baselines of earlier versions have no VMAF.
    quality = quality_summary(baselines)
    if quality is None:
        return dict.fromkeys(("factor_measured", "quality", *_ALIKE))
    worst = next(each for each in baselines if each["clip_id"] == quality["worst_clip_id"])
    factors = [factor for each in baselines if (factor := factor_of(each)) is not None]
    return {
        "factor_measured": median_low(factors) if factors else None,
        "quality": quality,
        **{name: worst.get(name) for name in _ALIKE},
    }
