"""Whether samples under reuse are good enough: each beside itself without reuse, against a floor, and by their alarms.

Numbers and words in, words out: it needs no torch, so every rank decides alike by the same facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.quality.headline import many
from pab.family import QualityFloor

Json = dict[str, Any]
_TOLD = ("model", "broadcast", "num_steps", "rendered", "why", "clips")


def faults(sample: Mapping[str, Any], floor: QualityFloor) -> list[str]:
    """Returns what speaks against a sample, in words; nothing if it is good enough.

    `sample`: what `jobs.quality.compare` says, with `alarms` under reuse and `baseline_alarms` without. A clip that came out
    the same has no PSNR and is as good as can be. VMAF counts where the clip is large enough for it. `not_finite`: what was
    NaN or infinite under reuse alone.
    """
    if sample.get("not_finite"):
        return [f"not finite: {sample['not_finite']}"]
    found = [f"{alarm}, which it is not without reuse" for alarm in new_alarms(sample)]
    if sample["identical"]:
        return found
    for name, unit in (("psnr_db", " dB"), ("ssim", ""), ("vmaf", "")):
        least, value = getattr(floor, name), sample.get(name)
        if least is not None and value is not None and value < least:
            found.append(f"{name.removesuffix('_db').upper()} {value:.4g}{unit}, the floor is {least:g}{unit}")
    return found


def new_alarms(sample: Mapping[str, Any]) -> list[str]:
    """Returns the alarms that a clip has under reuse and has not without."""
    return [alarm for alarm in sample["alarms"] if alarm not in sample["baseline_alarms"]]


def are_good(samples: Sequence[Mapping[str, Any]], floor: QualityFloor) -> bool:
    """Whether all samples are good enough: medians hide the clips that came out wrong."""
    return not any(faults(sample, floor) for sample in samples)


def why_not(samples: Sequence[Mapping[str, Any]], floor: QualityFloor) -> str:
    """Returns what is wrong with the samples, in one line; empty if they are good."""
    bad = [(sample["clip_id"], found) for sample in samples if (found := faults(sample, floor))]
    return "; ".join(f"clip {clip_id}: {', '.join(found)}" for clip_id, found in bad)


def guard_summary(reports: Sequence[Mapping[str, Any]]) -> Json | None:
    """Returns what the guards of jobs did, as JSON values; None where no job says it, such as in reports of before.

    `plans`: how many plans were judged; `clips`: rendered with a milder plan than was asked for; `stepped_down`: each plan
    that was not good enough, with its job; `undecided`: those of which no sample could be compared.
    """
    told = [(report["job"], plan) for report in reports for plan in report.get("guard", ())]
    if not told:
        return None
    stepped = [
        {
            "job": job,
            **{name: plan[name] for name in _TOLD},
        }
        for job, plan in told
        if plan["stepped_down"]
    ]
    return {
        "plans": sum(plan["rendered"] is not None for _, plan in told),
        "clips": sum(plan["clips"] for plan in stepped),
        "stepped_down": stepped,
        "undecided": sum(plan["rendered"] is None for _, plan in told),
        "off": all(plan["floor"] is None for _, plan in told),
    }


def guard_text(summary: Mapping[str, Any]) -> str:
    """Writes a summary in one line."""
    judged = many(summary["plans"], "plan")
    rest = f"; {many(summary['undecided'], 'plan')} not judged" if summary["undecided"] else ""
    if summary["off"]:
        return "off, nothing was judged"
    if not summary["stepped_down"]:
        return f"the samples of {judged} are good enough{rest}"
    first = summary["stepped_down"][0]
    more = f" and {len(summary['stepped_down']) - 1:,} more" if len(summary["stepped_down"]) > 1 else ""
    return (
        f"STEPPED DOWN, {many(summary['clips'], 'clip')} rendered with a milder plan: {first['broadcast']} at "
        f"{first['num_steps']} steps is {first['rendered']} in {first['job']} ({first['why']}){more}; of {judged}{rest}"
    )
