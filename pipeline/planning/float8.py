"""What 8-bit floats would make of a planned run: told by `--dry-run`, and never chosen, because they change pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.render_settings import RenderSettings
from jobs.settings import Mesh
from pab.family import FLOAT8_PARTS
from pipeline.planning.clip_times import MEASURED, SCALED, ClipTimes, source_of
from pipeline.planning.cost import ClipCosts
from pipeline.planning.figures import float8_parts
from pipeline.planning.kept import KeptQuestion
from pipeline.planning.memory import GB

if TYPE_CHECKING:
    from pipeline.planning.sharding import PlannedWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Float8Facts:
    """What a family's clips would take in 8-bit floats, beside what is planned: mean seconds of a clip, bytes of a rank.

    `parts`: of `pab.family.FLOAT8_PARTS`. `times` says where the seconds are from.
    """

    parts: tuple[str, ...]
    seconds: float
    planned_s: float
    memory_bytes: float | None
    planned_bytes: float | None
    times: str

    @property
    def flags(self) -> str:
        """The flags with which a user gets it."""
        return " ".join(f"--{part} float8" for part in self.parts)

    def to_dict(self) -> dict[str, object]:
        """Returns the facts as JSON values."""
        return {
            "flags": self.flags,
            "seconds": round(self.seconds, 3),
            "memory_bytes": None if self.memory_bytes is None else round(self.memory_bytes),
            "times": self.times,
        }

    def __str__(self) -> str:
        memory = ""
        if self.memory_bytes is not None and self.planned_bytes is not None:
            memory = f", {self.memory_bytes / GB:.1f} GB instead of {self.planned_bytes / GB:.1f}"
        return (
            f"{self.flags}: {self.seconds:,.1f} s a clip instead of {self.planned_s:,.1f}{memory} ({self.times}); it changes "
            "pixels, so it is only done if you say so"
        )


def float8_facts(render: RenderSettings, work: PlannedWork) -> dict[str, Float8Facts]:
    """Returns by family what 8-bit floats would give on the run's mesh, of families and devices that have them."""
    if render.device != "cuda":
        return {}
    found = {}
    for model in sorted({group.model for group in work.groups}):
        costs = work.times.costs
        family = costs.rules.families[model]
        if costs.precision_of(model) != "bfloat16":
            continue
        on_device = float8_parts(costs.source.device or costs.figures(model).device)
        of_family = {"linears": family.float8, "attention": family.float8_attention}
        parts = tuple(part for part in FLOAT8_PARTS if part in costs.float8 or (of_family[part] and part in on_device))
        if set(parts) > set(costs.float8):
            found[model] = _facts(model, parts, work, render.precision)
    return found


def _facts(model: str, parts: tuple[str, ...], work: PlannedWork, precision: str) -> Float8Facts:
    costs, planned, mesh = work.times.costs, work.choice.picked.kept[model], Mesh(cfg=work.mesh.cfg, sp=work.mesh.sp)
    question = KeptQuestion(groups=work.groups, precision=precision, memory_bytes=None)
    both = [
        ClipCosts(costs.rules, precision, costs.source, float8=each, eager=costs.eager)
        for each in (costs.float8, parts)
    ]  # fmt: skip
    times = [ClipTimes(each, render=work.times.render) for each in both]
    now, then = (question.facts(model, planned.way, mesh, each, costs.rules) for each in times)
    of_figures = both[1].measured_on(model)
    return Float8Facts(
        parts=parts,
        seconds=planned.seconds * then.seconds / now.seconds,
        planned_s=planned.seconds,
        memory_bytes=then.memory_bytes,
        planned_bytes=planned.memory_bytes,
        times=SCALED if work.choice.picked.times in {MEASURED, SCALED} else source_of(of_figures),
    )
