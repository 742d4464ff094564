"""`submit --dry-run`: the jobs, time, saving, plan and scripts of a submit that is not made.

Every time is labelled: measured, scaled from measured, from figures measured elsewhere, or estimated.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from jobs.reports.number_formats import duration
from manifests.accept import AcceptedManifest
from manifests.shards import ClipGroup
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import ATTENTION_KINDS
from pipeline.planning.cost import ClipCosts
from pipeline.planning.float8 import float8_facts
from pipeline.planning.guarded import guard_document, guard_lines
from pipeline.planning.scripts import SlurmAnswers
from pipeline.planning.sharding import PlannedWork
from pipeline.run.bill import HOUR_S, Budget, Prices, bill, bill_text, prices_of
from pipeline.run.growth import Growth
from pipeline.run.settings import RunSettings
from pipeline.run.state import Progress
from pipeline.screen import Screen, counted


def show_dry_run(
    settings: RunSettings,
    work: PlannedWork,
    *,
    progress: Progress,
    accepted: AcceptedManifest,
    answers: SlurmAnswers,
    growth: Growth | None = None,
    budget: Budget | None = None,
    screen: Screen,
) -> None:
    """Shows the plan of a submit; nothing is written or started. `growth`: how it would change the run's manifest."""
    costs = work.times.costs
    document = dry_run_document(settings, work, costs, progress=progress, num_clips=accepted.num_rows)
    document |= {"text_losses": dict(accepted.text_losses), "manifest_warnings": list(accepted.warnings)}
    document |= {"growth": growth.facts} if growth else {}
    document |= {"scripts": list(answers.scripts), "slurm_cluster": answers.cluster, "slurm_note": answers.note}
    document["expected_start"] = answers.start.isoformat() if answers.start else None
    document["budget_share_spent"] = round(budget.share(0.0), 4) if budget and budget.prices.budget else None
    screen.result(document, _text(settings, work, costs, document, answers, budget))


def dry_run_document(
    settings: RunSettings, work: PlannedWork, costs: ClipCosts, *, progress: Progress, num_clips: int
) -> dict[str, object]:
    """Returns the plan of a submit as JSON values."""
    shards = work.shards.shards
    ranks, prices = settings.machines.ranks_per_job, prices_of(settings.machines)
    job_s = sum(shard.seconds for shard in shards)
    longest_s = max((shard.seconds for shard in shards), default=0.0)
    at_once = max(1, min(settings.machines.max_parallel_jobs, len(shards)))
    return {
        "output": settings.output,
        "num_clips": num_clips,
        "recorded": len(progress.recorded),
        "failed": len(progress.not_rendered),
        "to_render": work.num_clips,
        "jobs": len(shards),
        "jobs_over_minutes": len(work.shards.over_bound),
        "mesh": str(work.mesh),
        "mesh_reason": work.choice.reason,
        "meshes": [facts.to_dict() for facts in work.choice.considered],
        "times": work.choice.picked.times,
        "figures": _told(work, costs),
        "kept": {model: [each.to_dict() for each in ways] for model, ways in work.choice.ways.items()},
        "longest_job_minutes": round(longest_s / 60, 2),
        "wall_minutes": round(max(longest_s, job_s / at_once) / 60, 2),
        "float8": {model: facts.to_dict() for model, facts in float8_facts(settings.render, work).items()},
        "gpu_hours": round(job_s * ranks / 3600, 3),
        "bill": bill(job_s * ranks, prices, clips=work.num_clips),
        "planned_speedup": None if work.speedup is None else round(work.speedup, 3),
        "loras": {name: [asdict(lora) for lora in loras] for name, loras in costs.rules.pinned_loras().items()},
        "compile": {model: asdict(choice) for model, choice in sorted(settings.render.weighed.items())},
        "guard": guard_document(work, settings.render),
        "warnings": list(work.warnings),
        "groups": [_group_document(settings, work, costs, group) for group in sorted(work.groups)],
    }


def _group_document(settings: RunSettings, work: PlannedWork, costs: ClipCosts, group: ClipGroup) -> dict[str, object]:
    plan = costs.plan(group)
    timed = work.times.per_clip(group, work.mesh, settings.render.keep_of(group.model))
    attention = [(plan.computed(kind) * group.loops, plan.total(kind) * group.loops) for kind in ATTENTION_KINDS]
    document: dict[str, object] = {
        **asdict(group),
        "num_clips": work.groups[group],
        "seconds_per_clip": round(timed.seconds / work.mesh.dp, 3),
        "times": timed.source,
        "attention_calls": sum(total for _, total in attention),
        "attention_calls_computed": sum(computed for computed, _ in attention),
        "plan": plan.digest,
        "computed_share": round(plan.computed_share, 4),
        "held_back": plan.held_back,
    }
    if plan.held_back:
        document |= {"full_length": plan.full_length, "full_share": round(plan.full_share, 4)}
    if isinstance(plan.rules, ForesightRules):
        document["least_share"] = round(plan.rules.least_share(plan.num_steps), 4)
    if work.mesh.sp > 1:
        document |= {
            "all_to_alls": plan.all_to_alls * group.loops,
            "all_to_alls_without_broadcast": plan.all_to_alls_without_broadcast * group.loops,
        }
    return document


def _text(
    settings: RunSettings,
    work: PlannedWork,
    costs: ClipCosts,
    document: dict[str, object],
    answers: SlurmAnswers,
    budget: Budget | None,
) -> str:
    lines = [
        (
            f"{counted(work.num_clips, 'clip')} of {document['num_clips']:,} to render "
            f"({document['recorded']:,} recorded, {document['failed']:,} failed) into {settings.output}"
        )
    ]
    if work.num_clips:
        group = work.largest_group
        lines += [
            (
                f"{counted(len(work.shards.shards), 'job')} of {settings.machines.nodes_per_job} x "
                f"{counted(settings.machines.gpus_per_node, 'rank')}, mesh {work.mesh}, at most "
                f"{settings.machines.max_parallel_jobs} at once on {settings.machines.cluster}"
            ),
            (
                f"planned (times {document['times']}): longest job {document['longest_job_minutes']} min, "
                f"all {document['wall_minutes']} min, "
                f"{document['gpu_hours']} {'GPU' if settings.render.device == 'cuda' else 'rank'}-hours, "
                f"{document['planned_speedup']} x as fast as without broadcast"
            ),
            *_cost(document, budget),
            *_over_bound(document),
            *guard_lines(work, settings.render),
            *(f"warning: {warning}" for warning in work.warnings),
            "",
            *work.mesh_lines,
            *(f"figures of {model}: {told}" for model, told in _told(work, costs).items()),
            *(f"{model}: {choice.why}" for model, choice in sorted(settings.render.weighed.items())),
            *(f"{model} with {facts}" for model, facts in float8_facts(settings.render, work).items()),
            "",
            (
                f"plan of {counted(work.groups[group], 'clip')}: {group.model} {group.width}x{group.height}, "
                f"{counted(group.num_frames, 'frame')}{_loops(group)}, {counted(group.num_steps, 'step')}{_sampled(group)}, "
                f"broadcast {group.broadcast}"
            ),
            _saving(_group_document(settings, work, costs, group)),
            _plan_text(costs.plan(group)),
        ]
    if document["expected_start"]:
        lines += ["", f"SLURM expects to start the first job at {document['expected_start']}"]
    if answers.cluster:
        lines += ["", f"for SLURM cluster {answers.cluster}, whose clients are asked by the variable SLURM_CLUSTERS"]
    if answers.note:
        lines += ["", answers.note]
    for script in answers.scripts:
        lines += ["", script]
    return "\n".join([*lines, "", "nothing was started or written"])


def _told(work: PlannedWork, costs: ClipCosts) -> dict[str, str]:
    return {model: costs.told(model) for model in sorted({group.model for group in work.groups})}


def _loops(group: ClipGroup) -> str:
    return f" in each of {group.loops} loops" if group.loops > 1 else ""


def _sampled(group: ClipGroup) -> str:
    preset = f" by sampling {group.sampling}" if group.sampling else ""
    shift = f", flow_shift {group.flow_shift:g}" if group.flow_shift else ""
    return preset + shift + (f", lora {group.lora}" if group.lora else "")


def _cost(document: dict[str, Any], budget: Budget | None) -> list[str]:
    if budget is None or budget.prices == Prices():
        return []
    planned = document["bill"] | {"budget": None, "budget_share": None}
    lines = [f"planned cost: {bill_text(planned)}"]
    if budget.prices.budget is not None:
        lines.append(budget.told(0.0))
        if (share := budget.share(document["bill"]["gpu_hours"] * HOUR_S)) > 1:
            lines.append(f"warning: with this submit it would be {share:.0%}: no job starts after 100%")
    return lines


def _over_bound(document: dict[str, object]) -> list[str]:
    over = document["jobs_over_minutes"]
    return [f"{over} of them hold one clip that takes longer than --job-minutes"] if over else []


def _plan_text(plan: BroadcastPlan) -> str:
    if isinstance(plan.rules, ForesightRules):
        return plan.rules.table(plan.num_steps)
    return plan.table()


def _saving(group: dict[str, object]) -> str:
    bound = "at most " if "least_share" in group else ""
    text = f"attention calls computed: {bound}{group['attention_calls_computed']} of {group['attention_calls']}"
    if "all_to_alls" in group:
        text += f", all-to-alls of a pass: {group['all_to_alls']} of {group['all_to_alls_without_broadcast']}"
    return f"{text}, about {duration(float(str(group['seconds_per_clip'])))} per clip ({group['times']})"
