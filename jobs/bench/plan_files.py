"""Broadcasts of rows: a preset of the family, or a plan in a file as `calibrate` writes it. Free of torch."""

from __future__ import annotations

from pathlib import Path

from pab.broadcast.rules import Rules, read_rules
from pab.broadcast.step_rules import StepRules
from pab.family import Family

SUFFIX = ".json"


def rules_of(family: Family, broadcast: str) -> Rules:
    """Returns the rules that a row's word means. Raises ValueError naming the file and what is wrong in it."""
    return family.presets[broadcast] if broadcast in family.presets else read_plan(family, Path(broadcast))


def read_plan(family: Family, path: Path) -> StepRules:
    """Reads a plan for a family. Raises ValueError for a file that holds none, or one for other sites."""
    if path.stem in family.presets:
        raise ValueError(f"plan {path}: {path.stem!r} is a preset of {family.name}; rename the file")
    try:
        rules = read_rules(path)
    except ValueError as error:
        raise ValueError(f"plan {path}: {error}") from error
    if not isinstance(rules, StepRules):
        raise ValueError(f"plan {path}: states no steps; give a plan as `calibrate` writes it, or a preset's name")
    if problem := rules.misfit(family.name, family.sites):
        raise ValueError(f"plan {path}: {problem}")
    return rules
