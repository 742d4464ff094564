"""What a job's guard decided, in the bucket: one small object for each plan, so that no later start decides otherwise.

The first one stays, whoever wrote it. One that is damaged counts as none: the plan is judged anew.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jobs.log import log_event
from jobs.quality.guard import why_not
from jobs.rendering.context import JobContext
from jobs.rendering.guarded_plans import NONE, GuardedPlan
from jobs.store import layout
from jobs.store.bucket import DamagedError
from pab.family import Family, QualityFloor

_LOG = logging.getLogger(__name__)
Json = dict[str, Any]


def decision(
    plan: GuardedPlan, *, rendered: str | None, tried: Sequence[Json], floor: QualityFloor | None, min_quality: str
) -> Json:
    """Returns a decision as JSON values.

    `rendered`: the broadcast that the clips get; None if no sample could be compared, and they get what was asked for.
    `tried`: the plans that were judged, the one asked for first: `broadcast`, `computed_share`, and `samples` as
    `jobs.quality.compare` gives them.
    """
    return {
        "schema": layout.SCHEMA,
        "plan": plan.key,
        "model": plan.model,
        "broadcast": plan.broadcast,
        "num_steps": plan.num_steps,
        "min_quality": min_quality,
        "floor": None
        if floor is None
        else {name: getattr(floor, name) for name in ("psnr_db", "ssim", "vmaf", "source")},
        "rendered": rendered,
        "stepped_down": rendered not in (None, plan.broadcast),
        "why": why_not(tried[0]["samples"], floor) if tried and floor is not None else "",
        "tried": list(tried),
    }


def undecided(plan: GuardedPlan, *, floor: QualityFloor | None, min_quality: str, why: str) -> Json:
    """Returns what stands for a plan of which no sample could be compared."""
    return {**decision(plan, rendered=None, tried=(), floor=floor, min_quality=min_quality), "why": why}


def read_decision(context: JobContext, plan: GuardedPlan, family: Family) -> Json | None:
    """Returns what was decided about a plan in this start of the job or before; None if nothing was. Raises BucketError."""
    path = layout.guard(context.shard, plan.key)
    try:
        found = context.bucket.read_json(path)
        _check(found, plan, family, f"{context.bucket.url}/{path}")
    except FileNotFoundError:
        return None
    except DamagedError as error:
        log_event(_LOG, "guard_decision_damaged", level=logging.WARNING, error=str(error))
        return None
    return found


def keep_decision(context: JobContext, plan: GuardedPlan, family: Family, made: Json) -> Json:
    """Writes a decision and returns the one that stands: that of another start, if it was first. Raises BucketError."""
    path = layout.guard(context.shard, plan.key)
    told = {**made, "job": context.facts(), "decided_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    if context.bucket.create_json(path, told):
        return told
    if (first := read_decision(context, plan, family)) is not None:
        return first
    context.bucket.write_json(path, told)  # what is there is damaged
    return told


def final_samples(made: Json) -> list[Json]:
    """Returns the samples as they were rendered in the end, beside themselves without reuse; none if that is `none`."""
    tried = made["tried"]
    return list(tried[-1]["samples"]) if tried and tried[-1]["broadcast"] == made["rendered"] else []


def _check(found: Json, plan: GuardedPlan, family: Family, place: str) -> None:
    allowed = {None, plan.broadcast, NONE, *family.presets}
    tried = found.get("tried")
    well = (
        found.get("plan") == plan.key
        and isinstance(found.get("rendered"), str | None)
        and found.get("rendered") in allowed
        and found.get("stepped_down") == (found.get("rendered") not in (None, plan.broadcast))
        and isinstance(found.get("why"), str)
        and isinstance(found.get("floor"), dict | None)
        and isinstance(tried, list)
        and all(isinstance(each, dict) and isinstance(each.get("samples"), list) for each in tried)
    )
    if not well:
        raise DamagedError(place, f"it is no decision about broadcast {plan.broadcast}", "it is decided anew")
