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

from jobs.bench.plan_files import SUFFIX, read_plan
from jobs.settings import Mesh
from pab.execution.choice import Execution, execution_of
from pab.families import FAMILIES
from pab.family import ClipRequest, Family

OURS, DIFFUSERS, CACHE_DIT = SIDES = ("ours", "diffusers", "cache-dit")
MODES = {"eager": False, "compiled": True}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "nokernels": {"kernels": False, "records": False},
    "norecording": {"records": False},
    "cudnn": {"attention": "cudnn"},
    "nocudnn": {"attention": "default"},
    "int8": {"keep": "int8"},
    "float8": {"linears": "float8"},
    "attention8": {"attention": "float8"},
}
"""Word -> fields of `Execution` that differ from what a job does by itself. A new option is a line here."""
IN_TURN = "inturn"
"""An option that is none of the execution: the rows of guidance run in turn (`--guidance-rows in-turn`)."""
TAKEN_AWAY = ("nokernels", "norecording", "nocudnn")
"""Options that leave something out which a job does by itself: the others add something."""
JOB = "job"
"""The group whose rows are whole jobs: text, denoising, decoding, encoding, records."""
_AXIS = re.compile(r"(dp|cfg|sp)([2-9]|[1-9]\d)")
PEER_OPTIONS = ("whole", "host", "half")
"""Of diffusers: the whole transformer compiled at once; timesteps given to its broadcast as numbers on the host.

Of cache-dit: a mask of steps by which about half is computed, in place of its default.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rows of one model and clip. `clip`: at full size.

    `minutes`: what all of them take at full size on a data centre GPU, about. `tiny`: the rows that are enough to see on a
    CPU, with tiny models, that all of it works.
    """

    name: str
    family: str
    model: str
    clip: str
    minutes: float
    rows: tuple[str, ...]
    tiny: tuple[str, ...]


GROUPS = (
    Group(
        name="open_sora",
        family="open_sora",
        model="Open-Sora 1.2",
        clip="480x848, 51 frames, 30 steps, guidance 7",
        minutes=7,
        rows=(
            "eager none",
            "compiled none",
            "compiled pab246",
            "compiled pab579",
            "compiled pab246 int8",
            "compiled pab357",
            "compiled none float8",
            "compiled pab246 float8",
            "compiled none cfg2",
            "compiled none sp2",
            "compiled none sp2 inturn",
            "compiled pab246 cfg2",
            "compiled pab246 sp2",
            "compiled pab246 sp2 inturn",
            "compiled pab246 float8 cfg2",
            "eager pab246",
            "compiled nokernels none",
            "eager cudnn none",
        ),
        tiny=(
            "eager none",
            "compiled none",
            "compiled pab246",
            "compiled pab246 int8",
            "eager pab246",
            "eager pab246 cfg2",
        ),
    ),
    Group(
        name="latte",
        family="latte",
        model="Latte-1",
        clip="512x512, 16 frames, 50 steps, guidance 7.5",
        minutes=8,
        rows=(
            "eager none",
            "diffusers: eager none",
            "diffusers: eager pab236",
            "compiled none",
            "compiled pab236",
            "compiled pab347",
            "compiled pab469",
            "diffusers: compiled none",
            "diffusers: compiled pab236",
            "cache-dit: eager",
            "compiled none nokernels",
            "eager pab236",
            "diffusers: eager pab236 host",
            "diffusers: compiled none whole",
        ),
        tiny=("eager none", "eager pab236", "diffusers: eager none", "diffusers: eager pab236", "cache-dit: eager"),
    ),
    Group(
        name="open_sora_plan",
        family="open_sora_plan_v110",
        model="Open-Sora-Plan 1.1.0",
        clip="512x512, 65 frames, 150 steps, guidance 7.5",
        minutes=6,
        rows=(
            "eager pab246",
            "compiled none",
            "compiled pab246",
            "compiled pab246 float8",
            "eager none",
            "compiled pab579",
        ),
        tiny=("eager none", "eager pab246"),
    ),
    Group(
        name="wan",
        family="wan",
        model="Wan 2.1 1.3B",
        clip="480x832, 81 frames, 10 steps of two passes, guidance 5",
        minutes=5,
        rows=(
            "eager none",
            "diffusers: eager none",
            "diffusers: compiled none",
            "cache-dit: compiled",
            "cache-dit: compiled half",
            "compiled none",
            "compiled pab2-6",
            "compiled pab2-6 int8",
            "compiled none nokernels",
            "compiled pab2-6 nokernels",
            "compiled none nokernels cudnn",
            "compiled none float8",
            "compiled none float8 attention8",
            "compiled pab2-6 float8 attention8",
            "compiled none lightning4",
            "compiled none cfg2",
            "compiled none sp2",
        ),
        tiny=(
            "eager none",
            "diffusers: eager none",
            "diffusers: compiled none",
            "compiled none",
            "compiled pab2-6",
            "compiled none lightning4",
        ),
    ),
    Group(
        name="wan_14b",
        family="wan_14b",
        model="Wan 2.1 14B",
        clip="480x832, 81 frames, 10 steps of two passes, guidance 5",
        minutes=9,
        rows=(
            "compiled pab2-6 int8",
            "compiled none",
            "compiled pab2-6 int8 float8 attention8",
            "compiled none float8 attention8",
            "compiled none float8",
            "compiled none lightning4",
            "compiled none lightning4 float8 attention8",
            "diffusers: compiled none",
            "cache-dit: compiled half",
            "cache-dit: compiled",
            "diffusers: eager none",
        ),
        tiny=(),
    ),
    Group(
        name="hunyuan_video",
        family="hunyuan_video",
        model="HunyuanVideo 13B",
        clip="544x960, 129 frames, 4 steps, guidance as an input",
        minutes=9,
        rows=(
            "compiled none",
            "diffusers: compiled none",
            "compiled pab2 int8",
            "compiled none float8 attention8",
            "diffusers: eager none",
        ),
        tiny=("compiled none",),
    ),
    Group(
        name="cogvideox",
        family="cogvideox_5b",
        model="CogVideoX 5B",
        clip="480x720, 49 frames, 10 steps, guidance 6",
        minutes=4,
        rows=(
            "compiled none",
            "diffusers: compiled none",
            "compiled pab2",
            "compiled none float8",
            "diffusers: eager none",
        ),
        tiny=("compiled none",),
    ),
    Group(
        name="ltx",
        family="ltx",
        model="LTX-Video 2B",
        clip="512x704, 161 frames, 10 steps, guidance 3",
        minutes=2,
        rows=(
            "compiled none",
            "diffusers: compiled none",
            "compiled pab2-6",
            "compiled none float8",
            "diffusers: eager none",
        ),
        tiny=("compiled none", "diffusers: compiled none"),
    ),
    Group(
        name=JOB,
        family="open_sora",
        model="A whole job of Open-Sora 1.2: 20 clips with decoding, encoding and records",
        clip="480x848, 51 frames, 30 steps, guidance 7",
        minutes=4,
        rows=("compiled pab246", "compiled pab246 float8", "compiled pab246 dp2", "compiled pab246 cfg2"),
        tiny=("eager pab246",),
    ),
    Group(
        name="open_sora_small",
        family="open_sora",
        model="Open-Sora 1.2, small clips",
        clip="144x256, 17 frames, 30 steps, guidance 7",
        minutes=2,
        rows=("eager none", "compiled none", "compiled pab246", "compiled none norecording", "eager pab246"),
        tiny=(),
    ),
    Group(
        name="demo",
        family="demo",
        model="The trained demo model, whose videos tell the quality",
        clip="64x64, 16 frames, 30 steps, guidance 4",
        minutes=1,
        rows=("eager none", "eager pab246", "eager pab357", "eager pab579", "eager foresight"),
        tiny=("eager none", "eager pab246"),
    ),
)
"""In order of importance, rows within a group too. Rows of one execution stand together: they share a compiled model."""


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
        same = tuple(word for word in self.options if word not in ("int8", "host", "half", IN_TURN))
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
