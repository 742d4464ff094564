"""The two factors of a report: measured (clips rendered a second time) and derived (from the clips' own full steps).

Both take each step at the median of its pattern, and leave out what rests on steps that were timed only while something was
compiled. Where they differ, the report says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from jobs.quality.headline import many
from jobs.reports.number_formats import seconds, times
from jobs.reports.report_times import PatternTimes, Settled, compiled_graphs, steps_of

Json = dict[str, Any]
_AGREE = 0.1
"""Factors that differ by less than this share agree: steps of one machine vary by as much."""
_COMPILING = "left out: some of its steps were timed only while something was compiled"


def reuses(record: Json) -> bool:
    """Whether a clip's plan reuses anything at all."""
    return bool(record["plan"]["computed"] != record["plan"]["total"])


def full_step_s(record: Json) -> float | None:
    """Returns the median seconds of the clip's steps that compute everything; None if it has none.

    The first one of a clip that compiled something counts only if there is no other.
    """
    found = [step_s for pattern, step_s in steps_of(record) if _is_full(pattern)]
    if compiled_graphs(record) and len(found) > 1:
        found = found[1:]
    return median(found) if found else None


def derived_baseline_s(record: Json) -> float | None:
    """Returns what all steps would take if each took as long as the clip's own fully computed ones."""
    step_s = full_step_s(record)
    return None if step_s is None else step_s * len(record["steps"]["seconds"])


def _is_full(pattern: str) -> bool:
    return "." not in pattern and pattern == pattern.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFactor:
    """What one clip would have taken without reuse, and what it took, in seconds. `baseline_s`: None if nothing tells."""

    baseline_s: float | None
    settled: Settled

    @property
    def factor(self) -> float | None:
        """How many times as fast reuse made the clip's denoising; None where that is not known."""
        if self.baseline_s is None or self.settled.compiling or not self.settled.seconds:
            return None
        return self.baseline_s / self.settled.seconds


def clip_factors(records: Sequence[Json]) -> list[ClipFactor]:
    """Returns the factor of each clip of a job, in their order."""
    times_of = PatternTimes(records)
    return [
        ClipFactor(baseline_s=derived_baseline_s(record), settled=times_of.settle(record)) for record in records
    ]  # fmt: skip


def derived_speedup(pairs: Sequence[tuple[Json, ClipFactor]]) -> Json | None:
    """Returns the derived factor over clips that reuse something, as JSON values; None where no clip does so."""
    derivable = [(record, each) for record, each in pairs if reuses(record) and each.baseline_s is not None]
    if not derivable:
        return None
    told = [(record, each) for record, each in derivable if each.factor is not None]
    without = sum(each.baseline_s or 0.0 for _, each in told)
    with_broadcast = sum(each.settled.seconds for _, each in told)
    num_steps = sum(len(record["steps"]["seconds"]) for record, _ in told)
    samples = min((each.settled.samples for _, each in told), default=0)
    return {
        "pab_factor": _ratio(without, with_broadcast),
        "clips": len(told),
        "denoise_s": round(with_broadcast, 5),
        "baseline_denoise_s": round(without, 5),
        "full_step_s": _ratio(without, num_steps),
        "samples": samples,
        "note": _note(samples, left_out=len(derivable) - len(told)),
        "how": "median seconds of each clip's own fully computed steps, times its number of steps; of the steps with reuse "
        "each at the median of its pattern",
    }


def measured_speedup(baselines: Sequence[Json]) -> Json | None:
    """Returns the factor over the clips that were rendered twice, as JSON values; None where none was."""
    if not baselines:
        return None
    told = [baseline for baseline in baselines if not baseline.get("compiling")]
    total = {
        name: sum(baseline[name] for baseline in told)
        for name in ("settled_s", "broadcast_settled_s", "denoise_s", "broadcast_denoise_s")
    }
    # Baselines of earlier versions do not tell how often their steps were timed.
    samples = min((baseline.get("samples", 2) for baseline in told), default=0)
    return {
        "pab_factor": _ratio(total["settled_s"], total["broadcast_settled_s"]),
        "pab_factor_as_timed": _ratio(total["denoise_s"], total["broadcast_denoise_s"]),
        "clips": len(told),
        "denoise_s": round(total["broadcast_settled_s"], 5),
        "baseline_denoise_s": round(total["settled_s"], 5),
        "full_step_s": _ratio(total["settled_s"], sum(len(baseline["steps"]["seconds"]) for baseline in told)),
        "samples": samples,
        "note": _note(samples, left_out=len(baselines) - len(told)),
        "how": "samples of each plan rendered a second time with every site computed; each step at the median of "
        "its pattern",
    }


def baselines_of(report: Mapping[str, Any]) -> list[Json]:
    """Returns the clips of a job's report that were rendered twice; reports of the first version have one at most."""
    first = report.get("baseline")
    return list(report.get("baselines", [] if first is None else [first]))


def factor_of(baseline: Json) -> float | None:
    """Returns the factor of one clip that was rendered twice; None where compiling hides it."""
    return None if baseline.get("compiling") else _ratio(baseline["settled_s"], baseline["broadcast_settled_s"])


def difference(measured: Mapping[str, Any] | None, derived: Mapping[str, Any] | None) -> str | None:
    """Returns why two factors differ; None where they agree, or where one of them is not known."""
    one, other = (each["pab_factor"] if each else None for each in (measured, derived))
    if measured is None or derived is None or not one or not other or abs(one / other - 1) <= _AGREE:
        return None
    text = (
        f"{times(one)} measured is of {many(measured['clips'], 'clip')} rendered twice, {times(other)} derived is of "
        f"{many(derived['clips'], 'clip')}"
    )
    full = [each.get("full_step_s") for each in (measured, derived)]
    if None not in full:
        text += (
            f"; a step that computes everything took {seconds(full[0])} in clips without reuse and {seconds(full[1])} in "
            "those with it, where it also stores what is kept, or where other work went on beside it"
        )
    return text + ". Where nothing else ran on the machines, the measured factor is the one to go by."


def _note(samples: int, *, left_out: int) -> str | None:
    parts = [f"{many(left_out, 'clip')} {_COMPILING}"] if left_out else []
    if samples == 1:
        parts.append("some steps were timed once only")
    return "; ".join(parts) or None


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 5) if whole else None
