"""Rows whose clips have several loops, each going on from the one before: what they say, and what it adds to a digest.

Only rows that fill one of the columns, or whose prompt has a text for each loop, are looked at one by one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.digest import DIGEST_BYTES
from manifests.errors import Problem, shown
from manifests.limits import Limits, Settings
from manifests.rules import ClipLoops

LOOP_COLUMNS = ("loops", "condition_frame_length", "condition_frame_edit")
FIRST_SCENE = "|0|"
"""How a prompt with a text for each loop begins."""

Stated = tuple[int | None, int | None, float | None]
"""What a row says in the LOOP_COLUMNS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLoops:
    """The rows of a batch that say anything of loops: their places in it and, in the same order, what."""

    at: tuple[int, ...]
    prompts: tuple[str, ...]
    stated: tuple[Stated, ...]

    def add_to_ids(self, hashes: npt.NDArray[np.uint8]) -> None:
        """Makes the hashes that default clip ids are written from depend on the columns; the prompt is in them already."""
        for at, stated in zip(self.at, self.stated, strict=True):
            if any(value is not None for value in stated):
                hashes[at] = _hash("row/1 loops", hashes[at], stated)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedLoops:
    """The clips of a batch that have several loops, for the rows in `at`; `problems` of those that cannot have them."""

    at: tuple[int, ...]
    loops: tuple[ClipLoops, ...]
    problems: tuple[Problem, ...]

    def of_rows(self) -> Mapping[int, ClipLoops]:
        """Returns the loops by place in the batch; a row that is not there has one."""
        return dict(zip(self.at, self.loops, strict=True))

    def add_to_digests(self, hashes: npt.NDArray[np.uint8]) -> None:
        """Makes the digests of clips with several loops depend on how many there are and how they go on."""
        for at, loops in zip(self.at, self.loops, strict=True):
            hashes[at] = _hash("clip/1 loops", hashes[at], loops)

    def columns(self, num_rows: int) -> dict[str, pa.Array]:
        """Returns the columns of an accepted manifest: one loop, and null, in the rows that have no more."""
        counts = np.ones(num_rows, np.int64)
        rest: dict[str, list[object]] = {name: [None] * num_rows for name in LOOP_COLUMNS[1:]} if self.at else {}
        for at, loops in zip(self.at, self.loops, strict=True):
            counts[at], rest[LOOP_COLUMNS[1]][at], rest[LOOP_COLUMNS[2]][at] = loops
        types = (pa.int64(), pa.float64())
        return {LOOP_COLUMNS[0]: pa.array(counts)} | {
            name: pa.array(rest[name], kind) if rest else pa.nulls(num_rows, kind)
            for name, kind in zip(LOOP_COLUMNS[1:], types, strict=True)
        }


def _hash(form: str, before: npt.NDArray[np.uint8], values: tuple[object, ...]) -> list[int]:
    text = json.dumps([form, before.tobytes().hex(), *values], ensure_ascii=True)
    return list(hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES])


def read_row_loops(columns: Mapping[str, pa.Array]) -> RowLoops:
    """Reads the rows of a batch that say anything of loops from its columns in our types."""
    asked = pc.starts_with(columns["prompt"], FIRST_SCENE)
    for name in LOOP_COLUMNS:
        if columns[name].null_count < len(columns[name]):
            asked = pc.or_(asked, columns[name].is_valid())
    at = tuple(int(i) for i in np.flatnonzero(asked.to_numpy(zero_copy_only=False)))
    return RowLoops(
        at=at,
        prompts=tuple(columns["prompt"][i].as_py() for i in at),
        stated=tuple(tuple(columns[name][i].as_py() for name in LOOP_COLUMNS) for i in at),
    )


def check_loops(
    given: RowLoops, settings: Settings, codes: npt.NDArray[np.int64], *, limits: Limits, first_row: int
) -> CheckedLoops:
    """Checks what rows of a batch say of loops; a row has at most one problem. `codes`: the settings of each row."""
    several: dict[int, ClipLoops] = {}
    problems: list[Problem] = []
    for at, prompt, stated in zip(given.at, given.prompts, given.stated, strict=True):
        found = _loops(prompt, stated, settings, int(codes[at]), limits)
        if isinstance(found, Problem):
            problems.append(found.of_row(first_row + at))
        elif found is not None and found[0] > 1:
            several[at] = found
    return CheckedLoops(at=tuple(several), loops=tuple(several.values()), problems=tuple(problems))


def _loops(prompt: str, stated: Stated, settings: Settings, code: int, limits: Limits) -> ClipLoops | Problem | None:
    model = settings.columns["model"][code].as_py()
    family = limits.family(model)
    if family is None:
        return None
    count, length, edit = stated
    column, says = ("prompt", shown(prompt)) if count is None else ("loops", str(count))
    if family.clip_loops is None:
        if (count or 1) == 1 and length is None and edit is None and not prompt.startswith(FIRST_SCENE):
            return None
        takers = ", ".join(limits.take_loops)
        allowed = f"{model} renders clips of one loop" + (f" ({takers} of several)" if takers else "")
        return Problem(column=column, value=says, allowed=allowed, action="leave that out, or name another model")
    if settings.broken[code]:
        return None
    try:
        return family.clip_loops(prompt, int(settings.columns["num_frames"][code].as_py()), count, length, edit)
    except ValueError as error:
        return Problem(column=column, value=says, allowed=str(error))
