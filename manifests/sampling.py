"""How rows are sampled that do not leave it to the family: what they say, whether it can be, what it adds to a digest.

A row, or the run for its rows, may name a preset, a shift of the noise levels, and a second guidance scale.
Only distinct settings that say something are looked at one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.errors import shown
from manifests.rules import FLOW_SHIFTS, FamilyRules, SamplingRule

SAMPLING_COLUMNS = ("sampling", "flow_shift", "guidance_scale_2")
_TYPES = {"sampling": pa.string(), "flow_shift": pa.float64(), "guidance_scale_2": pa.float64()}

Finding = tuple[int, str, str, str]
Values = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Distinct settings once sampling is decided: `columns` of them that follow from it, and what is wrong.

    `identity`: what each adds to what a digest names; empty for a row that is sampled as its family is published.
    """

    columns: Mapping[str, pa.Array]
    identity: tuple[str, ...]
    findings: tuple[Finding, ...]


def decide_sampling(
    given: Mapping[str, pa.Array], families: Sequence[FamilyRules], codes: npt.NDArray[np.int64]
) -> Sampled:
    """Fills in what presets fix. `given`: columns of distinct settings, null where a row has none; `codes`: their families.

    Returns the columns num_steps, guidance_scale and broadcast with the values of presets, and the SAMPLING_COLUMNS.
    """
    plain = [not any(name in family.defaults for name in SAMPLING_COLUMNS) for family in families]
    said = np.zeros(len(codes), np.bool_)
    for name in SAMPLING_COLUMNS:
        said |= given[name].is_valid().to_numpy(zero_copy_only=False)
    said |= ~np.array(plain, np.bool_)[codes]
    names = ("num_steps", "guidance_scale", "broadcast", *SAMPLING_COLUMNS)
    if not said.any():
        return Sampled(columns={name: given[name] for name in names}, identity=("",) * len(codes), findings=())
    columns = {name: given[name].to_pylist() for name in names}
    identity = [""] * len(codes)
    findings: list[Finding] = []
    for at in np.flatnonzero(said):
        family = families[codes[at]]
        row: Values = {name: given[name][int(at)].as_py() for name in (*names, "height", "width")}
        for name in SAMPLING_COLUMNS:
            row[name] = family.defaults.get(name) if row[name] is None else row[name]
        problem = _decided(row, family)
        if problem is not None:
            findings.append((int(at), *problem))
        else:
            identity[at] = "".join(f" {name} {row[name]}" for name in SAMPLING_COLUMNS if row[name] is not None)
        for name in names:
            columns[name][at] = row[name]
    types = {name: _TYPES.get(name, given[name].type) for name in names}
    return Sampled(
        columns={name: pa.array(columns[name], types[name]) for name in names},
        identity=tuple(identity),
        findings=tuple(findings),
    )


def check_defaults(family: FamilyRules) -> None:
    """Checks what the run says for rows that say nothing. Raises ValueError naming it as a flag, and what is allowed."""
    names = {"num_steps": pa.int64(), "guidance_scale": pa.float64(), "height": pa.int64(), "width": pa.int64()}
    given = {name: pa.nulls(1, kind) for name, kind in {**names, "broadcast": pa.string(), **_TYPES}.items()}
    for _, column, value, allowed in decide_sampling(given, [family], np.zeros(1, np.int64)).findings:
        raise ValueError(f"--{column.replace('_', '-')}={value}: {allowed}")


def _decided(row: Values, family: FamilyRules) -> tuple[str, str, str] | None:
    """Fills a row with what its sampling fixes. Returns column, value and what is allowed where that cannot be."""
    preset = SamplingRule()
    if row["sampling"] is not None:
        name = str(row["sampling"])
        if name not in family.samplings:
            has = f"has {', '.join(family.samplings)}" if family.samplings else "has none"
            return "sampling", shown(name), f"{family.name} {has}; leave it out to sample as published"
        preset = family.samplings[name]
        if problem := _fixed(row, preset, f"sampling {name}", family):
            return problem
    return _bad_shift(row, preset, family) or _bad_second_scale(row, family)


def _fixed(row: Values, preset: SamplingRule, says: str, family: FamilyRules) -> tuple[str, str, str] | None:
    for column, fixed in (("num_steps", preset.num_steps), ("guidance_scale", preset.guidance_scale)):
        if fixed is None:
            continue
        if row[column] is not None and row[column] != fixed:
            return column, f"{row[column]:g}", f"{says} has {column}={fixed:g}; leave out one of the two"
        row[column] = fixed
    if preset.broadcast is not None:
        asked = row["broadcast"] or (family.defaults["broadcast"] if family.broadcast_asked else preset.broadcast)
        if family.broadcasts.get(str(asked)) != family.broadcasts[preset.broadcast]:
            return (
                "broadcast",
                shown(str(asked)),
                (
                    f"{says} reuses nothing: each of its {preset.num_steps} steps changes the video too much; say "
                    f"{preset.broadcast}, or leave it out"
                ),
            )
        row["broadcast"] = asked
    return None


def _bad_shift(row: Values, preset: SamplingRule, family: FamilyRules) -> tuple[str, str, str] | None:
    shift = row["flow_shift"]
    if shift is None:
        return None
    assert isinstance(shift, float), "the column holds floats"
    if family.flow_shift is None:
        return "flow_shift", f"{shift:g}", f"the noise levels of {family.name} have no such shift; leave it out"
    if preset.num_steps is not None:
        return (
            "flow_shift",
            f"{shift:g}",
            f"sampling {row['sampling']} has fixed noise levels; leave out one of the two",
        )
    low, high = FLOW_SHIFTS
    if not (math.isfinite(shift) and low <= shift <= high):
        return "flow_shift", f"{shift:g}", f"{family.name} needs {low:g} to {high:g}"
    height, width = (row[name] or family.defaults[name] for name in ("height", "width"))
    if shift == family.flow_shift(int(str(height)), int(str(width))):
        row["flow_shift"] = None
    return None


def _bad_second_scale(row: Values, family: FamilyRules) -> tuple[str, str, str] | None:
    second = row["guidance_scale_2"]
    if second is None:
        return None
    assert isinstance(second, float), "the column holds floats"
    if not family.second_guidance:
        return "guidance_scale_2", f"{second:g}", f"{family.name} has one transformer and one scale; leave it out"
    low, high = family.guidance_scale
    if not (math.isfinite(second) and low <= second <= high):
        return "guidance_scale_2", f"{second:g}", f"{family.name} needs {low:g} to {high:g}"
    first = family.defaults["guidance_scale"] if row["guidance_scale"] is None else row["guidance_scale"]
    if first == 1.0:
        return "guidance_scale_2", f"{second:g}", "guidance is off at guidance_scale=1; leave out one of the two"
    if second == first:
        row["guidance_scale_2"] = None
    return None
