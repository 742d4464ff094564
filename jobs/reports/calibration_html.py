"""What a calibration measured and found, as one page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape

from jobs.calibration.calibrate import Calibration
from jobs.calibration.plan_quality import PlanQuality, Summary
from jobs.reports.calibration_svg import curves, plan_grid
from jobs.reports.html import page, table, tiles
from pab.calibration.groups import WHOLE_PASS


def calibration_page(found: Calibration, versions: Mapping[str, str]) -> str:
    """Returns the page. `versions`: of what rendered."""
    return page(
        f"plan {found.rules.digest} for {found.request.family.name}",
        [_head(found), _quality(found), _plan(found), _changes(found), _effects(found), _how(found, versions)],
    )


def _head(found: Calibration) -> str:
    request, plan_row = found.request, found.rows[0]
    clip = request.searched[0]
    size = (
        f"{clip.num_frames} frames {clip.width}x{clip.height}, {clip.num_steps} steps, guidance {clip.guidance_scale:g}"
    )
    figures = [
        ("of site calls computed", f"{plan_row.call_share.median:.1%}"),
        ("of planned time of sites", f"{plan_row.time_share.median:.1%}"),
        ("PSNR, median", _decibels(plan_row.psnr_db.median)),
        ("SSIM, median", f"{plan_row.ssim.median:.4f}"),
        ("compiled graphs it needs", str(found.plan.graphs)),
    ]
    bound = ""
    if not found.holds:
        bound = f"<p class='bad'>The plan misses what was asked for ({escape(str(request.target))}) on held-out prompts.</p>"
    return (
        f"<h1>Plan {found.rules.digest}</h1><p>{escape(request.family.name)}, {escape(size)}, {request.precision}; sought: "
        f"{escape(str(request.target))}.</p>{bound}{tiles(figures)}"
    )


def _quality(found: Calibration) -> str:
    rows = [_quality_row(row) for row in found.rows]
    head = (
        "broadcast", "digest", "calls computed", "planned time", "PSNR", "least", "most", "SSIM", "compiled graphs",
    )  # fmt: skip
    told = (
        f"{found.rows[0].clips} prompts that were not searched on, each clip against itself without reuse, same seed. "
        "Medians over clips; planned time is that of the sites, by the family's cost figures."
    )
    return f"<h2>Against every preset</h2><p>{told}</p>" + table(head, rows, numbers=range(2, 9))


def _quality_row(row: PlanQuality) -> tuple[str, ...]:
    return (
        row.broadcast, row.digest, _share(row.call_share), _share(row.time_share), _decibels(row.psnr_db.median),
        _decibels(row.psnr_db.least), _decibels(row.psnr_db.most), f"{row.ssim.median:.4f}", str(row.graphs),
    )  # fmt: skip


def _plan(found: Calibration) -> str:
    num_steps = found.plan.num_steps
    plan = found.plan
    passes = [step not in plan.skipped for step in range(num_steps)]
    computes = [
        [not plan.reuses(step, plan.index[group.names[0]]) for step in range(num_steps)]
        for group in found.measured.groups
    ]
    return "<h2>The plan</h2>" + plan_grid(list(_labels(found)), [*computes, passes])


def _changes(found: Calibration) -> str:
    told = (
        "Mean squared difference of a group's output from that of the step before, relative to its mean square, over the "
        f"prompts searched on ({len(found.request.searched)}). Where the line is low, little is lost by reuse."
    )
    lines = found.measured.changes.from_step_to_step.tolist()
    picture = curves(list(_labels(found)), lines, first_step=1, what="change from step to step")
    return f"<h2>Change from step to step</h2><p>{told}</p>{picture}"


def _effects(found: Calibration) -> str:
    told = (
        "How far the finished latents move, root mean square, when a group reuses at this step alone: the change above "
        f"times how much it still matters. Measured at every {_ordinal(found.request.probe_every)}step, "
        "between them from the change."
    )
    lines = found.measured.effects[:, 1:].tolist()
    picture = curves(list(_labels(found)), lines, first_step=1, what="effect of one reuse")
    return f"<h2>Effect of one reuse on the finished clip</h2><p>{told}</p>{picture}"


def _how(found: Calibration, versions: Mapping[str, str]) -> str:
    request = found.request
    prompts = [("searched on", clip.prompt, str(clip.seed), "") for clip in request.searched]
    judged = zip(request.held_out, found.rows[0].clip_psnr_db, strict=True)
    prompts += [("held out", clip.prompt, str(clip.seed), _decibels(value)) for clip, value in judged]
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    weights = f"weights {request.weights or 'of the family'}, device {request.device}"
    return (
        "<h2>Prompts</h2>"
        + table(("", "prompt", "seed", "PSNR"), prompts, numbers=(2, 3))
        + f"<p>On the prompts searched on the plan has {_decibels(found.searched_psnr_db)} (median). {escape(weights)}; "
        f"{escape(made)}.</p>"
    )


def _labels(found: Calibration) -> Iterable[str]:
    return (group.label for group in (*found.measured.groups, WHOLE_PASS))


def _ordinal(every: int) -> str:
    return "" if every == 1 else {2: "2nd ", 3: "3rd "}.get(every, f"{every}th ")


def _share(summary: Summary) -> str:
    if summary.least == summary.most:
        return f"{summary.median:.1%}"
    return f"{summary.median:.1%} ({summary.least:.1%} to {summary.most:.1%})"


def _decibels(value: float) -> str:
    return "the same frames" if math.isinf(value) else f"{value:.1f} dB"
