"""What a calibration measured and found, as one page. What stands on it: `templates/calibration.html`."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from jobs.calibration.calibrate import Calibration
from jobs.reports.calibration_svg import curves, plan_grid
from jobs.reports.page import page
from pab.calibration.groups import WHOLE_PASS


def calibration_page(found: Calibration, versions: Mapping[str, str]) -> str:
    """Returns the page. `versions`: of what rendered."""
    labels = [group.label for group in (*found.measured.groups, WHOLE_PASS)]
    changes, effects = found.measured.changes.from_step_to_step, found.measured.effects[:, 1:]
    return page(
        "calibration.html",
        found=found,
        request=found.request,
        plan_picture=_plan(found, labels),
        changes_picture=curves(labels, changes.tolist(), first_step=1, what="change from step to step"),
        effects_picture=curves(labels, effects.tolist(), first_step=1, what="effect of one reuse"),
        probed=_ordinal(found.request.probe_every),
        held_out=list(zip(found.request.held_out, found.rows[0].clip_psnr_db, strict=True)),
        versions=versions,
    )


def _plan(found: Calibration, labels: list[str]) -> Markup:
    plan = found.plan
    steps = range(plan.num_steps)
    passes = [step not in plan.without_blocks for step in steps]
    computes = [
        [not plan.reuses(step, plan.index[group.names[0]]) for step in steps] for group in found.measured.groups
    ]
    return plan_grid(labels, [*computes, passes])


def _ordinal(every: int) -> str:
    return "" if every == 1 else {2: "2nd ", 3: "3rd "}.get(every, f"{every}th ")
