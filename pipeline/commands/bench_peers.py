"""Rows of `bench` that put peers and our plans over the same trained weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.bench.peers.chosen import Chosen

if TYPE_CHECKING:
    from jobs.bench.run import BenchSettings

FAILED = "failed"
Json = dict[str, Any]


def measure_peers(
    models: Sequence[Chosen],
    settings: BenchSettings,
    environment: Json,
    *,
    ends: float,
    tell: Callable[[Json], None],
    note: Callable[[str], None],
) -> Json:
    """Measures models one after another, and returns their figures.

    `ends`: of the monotonic clock, when no setting begins any more. `tell` is given all figures after every setting, `note` a
    line about it.
    """
    from jobs.bench.peers.measure import measure_chosen
    from jobs.bench.peers.work import work_of

    found: Json = {"environment": environment, "models": []}
    for chosen in models:
        work = work_of(chosen, settings.size, row_seconds=settings.row_seconds, ends=ends)
        found["models"].append({"rows": []})
        for part in measure_chosen(work, chosen, settings.device, note):
            model = found["models"][-1]
            found["models"][-1] = {**part, "rows": [*model["rows"], *part["rows"]]}
            tell(found)
            note(told(chosen.family, part["rows"][0]))
    return found


def summary(found: Json) -> list[str]:
    """Returns a line per setting."""
    return [told(model["family"], row) for model in found["models"] for row in model["rows"]]


def any_failed(found: Json) -> bool:
    """Whether a setting failed; one that cannot run here is no failure."""
    return any(row["status"] == FAILED for model in found["models"] for row in model["rows"])


def told(family: str, row: Mapping[str, Any]) -> str:
    """Returns a setting as a line of text."""
    name = f"{family} {row['side']} {row['method']}: {row['setting']}"
    if row["why"] is not None:
        return f"{name:<44} {row['status']}: {row['why']}"
    seconds, psnr, vmaf = row["clip_s"], row["psnr_db"], row["vmaf"]
    times = "not timed" if seconds is None else f"{seconds:.4f} s a clip, {row['whole_clip_s'] / seconds:.2f}x as fast"
    alike = "the same video"
    if psnr["worst"] is not None:
        alike = f"{_db(psnr['median'])} (worst {_db(psnr['worst'])})"
    if vmaf["worst"] is not None:
        alike += (
            f", VMAF {'-' if vmaf['median'] is None else format(vmaf['median'], '.0f')} (worst {vmaf['worst']:.0f})"
        )
    return f"{name:<44} {row['operations']:.1%} of operations, {times}, {alike}"


def _db(value: float | None) -> str:
    return "the same" if value is None else f"{value:.1f} dB"
