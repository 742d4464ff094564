"""Ways to keep a family's outputs between steps, what each costs on a mesh, and the first that fits.

As asked for, if that fits. Else as 8-bit integers, or under rules that keep less (`pab.broadcast.smaller`), or without
broadcast, or by a plan of the family's whose residuals stand in for all blocks and so keeps one or two tensors for each
guidance branch; whichever of those that fit is fastest. What the user typed is never changed: then what would fit is
only told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from jobs.pixel_settings import CHOSEN
from jobs.render_settings import KeepChoice, RenderSettings
from jobs.settings import Mesh
from manifests.shards import ClipGroup
from pab.broadcast.rules import BroadcastRules, Rules
from pab.broadcast.step_rules import StepRules
from pab.execution.choice import KEEP_CHOICES
from pipeline.planning.clip_times import MEASURED, ClipTimes, source_of, weakest
from pipeline.planning.memory import GB, RESERVED_BYTES, in_float8, rank_bytes
from pipeline.run.rules import RunRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to keep a family's outputs. `broadcast`: of rows that name none.

    `allowed`: whether it may be chosen. `as_asked`: whether it is what the user would get with memory enough.
    """

    keep: str
    broadcast: str
    allowed: bool = True
    as_asked: bool = False

    def of(self, group: ClipGroup, default: str) -> ClipGroup:
        """Returns the group as it is rendered this way. `default`: what rows that name no broadcast have now."""
        return replace(group, broadcast=self.broadcast) if group.broadcast == default else group

    def __str__(self) -> str:
        return f"{self.broadcast}, keep {self.keep}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WayFacts:
    """What a way costs a family's clips on a mesh: mean seconds of a clip on its ranks, the most that a rank holds."""

    way: Way
    seconds: float
    memory_bytes: float | None
    memory: str | None
    fits: bool | None

    def to_dict(self) -> dict[str, object]:
        """Returns the facts as JSON values."""
        return asdict(self.way) | {
            "seconds": round(self.seconds, 3),
            "memory_bytes": None if self.memory_bytes is None else round(self.memory_bytes),
            "fits": self.fits,
        }


def ways_of(
    render: RenderSettings, rules: RunRules, model: str, groups: Sequence[ClipGroup], *, begun: bool
) -> tuple[Way, ...]:
    """Returns the ways of a family, as asked first. `begun`: the run goes on, or has chosen, so nothing may change."""
    family, now = rules.families[model], default_broadcast(rules, model)
    own = family.defaults.broadcast if render.broadcast is None else now
    names = [own]
    if own in family.presets and any(group.broadcast == now for group in groups):
        others = family.smaller(own)
        names += [
            *others,
            *(name for name, each in family.presets.items() if name != own and _stands_in(each)),
            *(["none"] if "none" in family.presets and own != "none" else []),
        ]
    keeps = KEEP_CHOICES if any(_keeps(rules, group) for group in groups) else KEEP_CHOICES[:1]
    wanted = KEEP_CHOICES[0] if render.keep == CHOSEN else render.keep
    found = [
        Way(
            keep=keep,
            broadcast=name,
            allowed=(name, keep) == (now, render.keep_of(model))
            if begun
            else render.keep in (CHOSEN, keep) and (name == own or render.broadcast is None),
            as_asked=(name, keep) == (own, wanted),
        )
        for name in names
        for keep in (keeps if name != "none" else (wanted,))
    ]
    return tuple(sorted(found, key=lambda way: not way.as_asked))


def _stands_in(rules: Rules) -> bool:
    return isinstance(rules, StepRules) and bool(rules.residual)


def _keeps(rules: RunRules, group: ClipGroup) -> bool:
    # Foresight keeps whole blocks, always in full, and how many is known only while it renders.
    named = rules.broadcast(group.model, group.broadcast)
    return not isinstance(named, BroadcastRules) or bool(named.to_dict())


def default_broadcast(rules: RunRules, model: str) -> str:
    """Returns the broadcast of a family's rows that name none."""
    return str(rules.rows[model].defaults["broadcast"])


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptQuestion:
    """What ways are judged by: the clips of each group, precision, the memory of a rank's device (None: no bound)."""

    groups: Mapping[ClipGroup, int]
    precision: str
    memory_bytes: float | None

    def facts(self, model: str, way: Way, mesh: Mesh, times: ClipTimes, rules: RunRules) -> WayFacts:
        """Returns what a way costs on a mesh."""
        seconds, clips, most, sources = 0.0, 0, 0.0, set[str]()
        default = default_broadcast(rules, model)
        for group, count in self.groups.items():
            if group.model != model:
                continue
            changed = way.of(group, default)
            seconds += count * times.per_clip(changed, mesh, way.keep).seconds
            clips += count
            needed, source = self._needed(changed, way.keep, mesh, times, rules)
            if needed is None:
                return WayFacts(way=way, seconds=seconds / clips, memory_bytes=None, memory=None, fits=None)
            most = max(most, needed)
            sources.add(source)
        source = weakest(sources)
        return WayFacts(
            way=way, seconds=seconds / max(1, clips), memory_bytes=most, memory=source, fits=self._fits(most, source)
        )

    def _fits(self, needed: float, source: str) -> bool | None:
        if self.memory_bytes is None:
            return None
        return needed + (0.0 if source == MEASURED else RESERVED_BYTES) <= self.memory_bytes

    def _needed(
        self, group: ClipGroup, keep: str, mesh: Mesh, times: ClipTimes, rules: RunRules
    ) -> tuple[float | None, str]:
        two = times.costs.two_branches(group)
        measured = times.measured.peak_bytes(group, mesh.cfg if two else 1, mesh.sp, keep)
        if measured is not None:
            return measured, MEASURED
        memory, precision = (
            times.costs.figures(group.model).memory,
            rules.families[group.model].precision_for(self.precision),
        )
        if memory is not None and "linears" in times.costs.float8:
            memory = in_float8(memory, precision)
        needed = rank_bytes(
            rules.families[group.model], memory, group, times.costs.plan(group), mesh,
            two_branches=two, precision=precision, keep=keep,
        )  # fmt: skip
        return needed, source_of(memory.measured if memory else None)

    def best(self, model: str, ways: Sequence[Way], mesh: Mesh, times: ClipTimes, rules: RunRules) -> WayFacts:
        """Returns the first allowed way if it fits, else the fastest that does, else the first."""
        allowed = [way for way in ways if way.allowed] or list(ways[:1])
        first = self.facts(model, allowed[0], mesh, times, rules)
        if first.fits is not False:
            return first
        others = [self.facts(model, way, mesh, times, rules) for way in allowed[1:]]
        return min((each for each in others if each.fits), key=lambda each: each.seconds, default=first)


def choice_of(way: Way, ways: Sequence[Way]) -> KeepChoice:
    """Returns a way as jobs and run.json have it."""
    own = next(each.broadcast for each in ways if each.as_asked)
    return KeepChoice(keep=way.keep, broadcast=None if way.broadcast == own else way.broadcast)


def ways_table(model: str, facts: Sequence[WayFacts], picked: Way, mesh: Mesh) -> list[str]:
    """Returns a line for each way to keep a family's outputs on a mesh."""
    lines = [f"{f'kept outputs of {model}, {mesh}':<52}{'one clip, s':>14}{'memory, GB':>12}"]
    for each in facts:
        notes = [
            *(["as asked"] if each.way.as_asked else []),
            *(["does not fit"] if each.fits is False else []),
        ]
        name = f"{'*' if each.way == picked else ' '} {each.way}"
        size = "?" if each.memory_bytes is None else f"{each.memory_bytes / GB:.1f}"
        lines.append(f"{name:<52}{each.seconds:>14,.2f}{size:>12}  {', '.join(notes)}".rstrip())
    return lines


def chosen_text(picked: WayFacts, facts: Sequence[WayFacts], bound: str, mesh: Mesh) -> str:
    """Returns what was chosen instead of what was asked for, and what both cost."""
    asked = next(each for each in facts if each.way.as_asked)
    return f"{picked.way} ({_cost(picked)}), because {asked.way} ({_cost(asked)}) does not fit into {bound} on {mesh}"


def _cost(facts: WayFacts) -> str:
    size = "?" if facts.memory_bytes is None else f"{facts.memory_bytes / GB:.1f}"
    return f"{size} GB, {facts.seconds:,.1f} s a clip"


def misfit_warning(model: str, facts: Sequence[WayFacts], picked: WayFacts, bound: str) -> str | None:
    """Returns what is told of a family whose clips are not expected to fit: what they need, and what would fit."""
    if picked.fits is not False or picked.memory_bytes is None:
        return None
    fitting = [f"{each.way} ({_cost(each)})" for each in facts if each.fits]
    would = (
        f"these would fit: {'; '.join(fitting)}"
        if fitting
        else "no way to keep less fits on this mesh; use more GPUs per job"
    )
    return f"{model} with {picked.way} needs {picked.memory_bytes / GB:.1f} GB of {bound}; {would}"
