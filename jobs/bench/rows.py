"""The rows of the benchmark's table: which model, whose code, and in words how it is run. Free of torch.

A row's words are an execution (`compiled`, `nokernels`, `int8`, ...), a broadcast preset or the file of a plan
(`plans/mine.json`), a preset of few steps (`lightning4`) and a mesh (`cfg2`, `sp4`, both of them; of a whole job `dp2` too).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.bench.groups import GROUPS, JOB, Group
from jobs.bench.plan_files import SUFFIX, read_plan
from jobs.settings import Mesh
from pab.execution.choice import Execution, execution_of
from pab.families import FAMILIES
from pab.family import ClipRequest, Family

OURS, DIFFUSERS, CACHE_DIT = SIDES = ("ours", "diffusers", "cache-dit")
MODES = {"eager": False, "compiled": True}
RECORDED, NOT_RECORDED = "recorded", "norecording"
"""Options by which every loop is recorded, not only those that gain by it, or none (`--record-loops on`, `off`)."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "nokernels": {"kernels": False, "records": False},
    NOT_RECORDED: {"records": False},
    RECORDED: {"records": True},
    "cudnn": {"attention": "cudnn"},
    "nocudnn": {"attention": "default"},
    "int8": {"keep": "int8"},
    "float8": {"linears": "float8"},
    "attention8": {"attention": "float8"},
}
"""Word -> fields of `Execution` that differ from what a job does by itself. A new option is a line here."""
IN_TURN = "inturn"
"""An option that is none of the execution: the rows of guidance run in turn (`--guidance-rows in-turn`)."""
TAKEN_AWAY = ("nokernels", NOT_RECORDED, "nocudnn")
"""Options that leave something out which a job does by itself: the others add something."""
_AXIS = re.compile(r"(dp|cfg|sp)([2-9]|[1-9]\d)")
PEER_OPTIONS = ("whole", "host", "half")
"""Of diffusers: the whole transformer compiled at once; timesteps given to its broadcast as numbers on the host.

Of cache-dit: a mask of steps by which about half is computed, in place of its default.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. `mode`: "eager" or "compiled". `options`: words of OPTIONS or PEER_OPTIONS.

    `broadcast`: a preset's name, or the file of a plan. `sampling`: one of the family's presets of few steps; None for its
    own steps.
    """

    group: Group
    side: str
    mode: str
    broadcast: str
    sampling: str | None = None
    options: tuple[str, ...] = ()
    mesh: Mesh = field(default_factory=Mesh)

    @property
    def words(self) -> str:
        """How it is run, in words."""
        sizes = {"dp": self.mesh.dp, "cfg": self.mesh.cfg, "sp": self.mesh.sp}
        mesh = [f"{axis}{size}" for axis, size in sizes.items() if size > 1]
        return " ".join([self.mode, self.broadcast, *filter(None, [self.sampling]), *self.options, *mesh])

    @property
    def name(self) -> str:
        """Names it in the table and in `--rows`."""
        return f"{self.group.name} {self.side}: {self.words}"

    @property
    def family(self) -> Family:
        """The family of its model."""
        return FAMILIES[self.group.family]

    def execution(self, device: str, precision: str) -> Execution:
        """Returns how our model is run: as a job does by itself, but for the row's options.

        Raises ValueError for an option that the family has not.
        """
        changed = {name: value for word in self.options for name, value in OPTIONS.get(word, {}).items()}
        usual = execution_of(
            self.family,
            compiled=MODES[self.mode],
            attention=changed.get("attention", "auto"),
            device=device,
            precision=precision,
            linears=changed.get("linears", "full"),
        )
        if RECORDED in self.options and not self.family.records_loops:
            raise ValueError(f"{RECORDED!r}: the loops of {self.family.name} cannot be recorded")
        return replace(usual, **changed)

    def changes_nothing(self, device: str, precision: str) -> str | None:
        """Returns the word without which the row would be the same on this machine; None where all say something."""
        whole = self.execution(device, precision)
        if self.mesh.sp == 1 and IN_TURN in self.options:
            return IN_TURN  # nothing is exchanged
        for word in self.options:
            less = replace(self, options=tuple(other for other in self.options if other != word))
            if word in OPTIONS and (less.execution(device, precision) == whole or (word, device) == ("cudnn", "cpu")):
                return word
        return None

    def asked(self, request: ClipRequest) -> ClipRequest:
        """Returns a clip as the row samples it."""
        if self.sampling is None:
            return request
        preset = self.family.samplings[self.sampling]
        steps, scale = preset.num_steps, preset.guidance_scale
        return replace(
            request,
            sampling=self.sampling,
            num_steps=request.num_steps if steps is None else steps,
            guidance_scale=request.guidance_scale if scale is None else scale,
        )

    @property
    def reuses(self) -> bool:
        """Whether it leaves something out that an earlier step computed."""
        return self.broadcast != "none" or self.side == CACHE_DIT

    @property
    def without_reuse(self) -> tuple[str, str, str, tuple[str, ...]]:
        """Names the clip it is compared with: the same way of running on one device, where nothing is kept."""
        same = tuple(word for word in self.options if word not in ("int8", "host", "half", IN_TURN, RECORDED))
        side = DIFFUSERS if self.side == CACHE_DIT else self.side
        return self.group.name, side, self.mode, (*filter(None, [self.sampling]), *same)


def parse_row(group: Group, text: str) -> Row:
    """Reads `[SIDE:] WORDS`. Raises ValueError naming the word and what is allowed."""
    side, _, words = text.rpartition(":")
    side = side.strip() or OURS
    if side not in SIDES:
        raise ValueError(f"{text!r}: {side!r}, allowed {', '.join(SIDES)}")
    presets, samplings = FAMILIES[group.family].presets, FAMILIES[group.family].samplings
    row = Row(group=group, side=side, mode="eager", broadcast="none")
    for word in words.split():
        if word in MODES:
            row = replace(row, mode=word)
        elif (axis := _AXIS.fullmatch(word)) and side == OURS and _allowed(axis, group):
            row = replace(row, mesh=replace(row.mesh, **{axis[1]: int(axis[2])}))
        elif word in ((*OPTIONS, IN_TURN) if side == OURS else PEER_OPTIONS):
            row = replace(row, options=(*row.options, word))
        elif word in presets:
            row = replace(row, broadcast=word)
        elif word.endswith(SUFFIX) and side == OURS:
            read_plan(row.family, Path(word))
            row = replace(row, broadcast=word)
        elif word in samplings and side == OURS:
            row = replace(row, sampling=word)
        else:
            options = [*OPTIONS, IN_TURN, "cfg2", "spN", *samplings] if side == OURS else PEER_OPTIONS
            plans = [f"PLAN{SUFFIX}"] if side == OURS else []
            allowed = ", ".join([*MODES, *options, *presets, *plans])
            raise ValueError(f"row {group.name} {text!r}: word {word!r}, allowed {allowed}")
    return row


def _allowed(axis: re.Match[str], group: Group) -> bool:
    # A clip alone is not rendered by replicas, and guidance has two branches.
    return group.name == JOB if axis[1] == "dp" else axis[1] == "sp" or axis[2] == "2"


def all_rows(*, tiny: bool = False) -> list[Row]:
    """Returns the whole table, or what of it is enough with tiny models, in order of importance."""
    return [parse_row(group, text) for group in GROUPS for text in (group.tiny if tiny else group.rows)]


def chosen_rows(texts: Sequence[str], *, tiny: bool = False) -> list[Row]:
    """Returns the rows that the texts name: a group, a part of a row's name, or `GROUP [SIDE]: WORDS` for any other row.

    Without texts the whole table, or with `tiny` what is enough. Raises ValueError naming a text that names nothing.
    """
    if not texts:
        return all_rows(tiny=tiny)
    found: dict[str, Row] = {}
    for text in texts:
        for row in _named(text):
            found.setdefault(row.name, row)
    return list(found.values())


def _named(text: str) -> list[Row]:
    rows = all_rows()
    of_group = [row for row in rows if row.group.name == text]
    if of_group:
        return of_group
    place, _, words = text.partition(":")
    group_name, _, side = place.strip().partition(" ")
    group = {group.name: group for group in GROUPS}.get(group_name)
    if words and group is not None:
        return [parse_row(group, f"{side or OURS}:{words}")]
    holding = [row for row in rows if text in row.name]
    if not holding:
        names = ", ".join(group.name for group in GROUPS)
        raise ValueError(f"--rows {text!r} names no row; allowed: a group ({names}, peers), a part of a row's name (--list), "
                         "or GROUP: WORDS")  # fmt: skip
    return holding
