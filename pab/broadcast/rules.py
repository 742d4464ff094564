"""The rules that make a broadcast plan: a range and a window of noise levels per kind of site, or Foresight instead.

These are the rules of Pyramid Attention Broadcast (arXiv 2408.12588, section 3.2) as plain values, and their form in JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pab.broadcast.foresight import ForesightRules, foresight_from_dict
from pab.broadcast.step_rules import StepRules, step_rules_from_dict

ATTENTION_KINDS = ("spatial", "temporal", "cross")
KINDS = (*ATTENTION_KINDS, "mlp")
MAX_FILE_BYTES = 16 << 20
_FILE_NEEDS = (
    'needs an object such as {"spatial": {"range": 2, "window": [450, 930]}}, or a plan as calibrate writes it'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRule:
    """Compute once, reuse `range_steps - 1` times, where `low < int(timestep) < high` (both strict).

    `blocks`: of each stack, the only blocks that reuse; None for all.
    """

    range_steps: int
    low: int
    high: int
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.range_steps < 1:
            raise ValueError(f"broadcast range={self.range_steps}, needs 1 (never reuse) or more")
        if self.low > self.high:
            raise ValueError(f"broadcast window {self.low}..{self.high} is empty; write the smaller timestep first")
        if self.blocks is not None and (not self.blocks or min(self.blocks) < 0):
            raise ValueError(f"broadcast blocks={list(self.blocks)}, needs some numbers of blocks; leave out for all")

    def holds(self, block: int) -> bool:
        """Whether sites of this block may reuse."""
        return self.blocks is None or block in self.blocks

    def reuses(self, step: int, timestep: float) -> bool:
        """Whether this step reuses an earlier output. Ranges are counted from step 0, not from the window's first step."""
        return step % self.range_steps != 0 and self.low < int(timestep) < self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpRule:
    """The listed blocks keep their MLP outputs of a key step, and reuse them at the next `skip_count` steps.

    The key is either an exact integer `timestep`, as in the published configurations, or a `position`, a fraction of the
    steps, which works at every size, length and step count. Exactly one of them is given.
    """

    stack: str
    blocks: tuple[int, ...]
    skip_count: int
    timestep: int | None = None
    position: float | None = None

    def __post_init__(self) -> None:
        if (self.timestep is None) == (self.position is None):
            raise ValueError("an mlp rule needs exactly one of timestep and position")
        if self.position is not None and not 0 <= self.position < 1:
            raise ValueError(f"mlp rule position={self.position}, allowed 0 up to but without 1")
        if self.skip_count < 1:
            raise ValueError(f"mlp rule skip_count={self.skip_count}, needs 1 or more")

    def key_steps(self, timesteps: Sequence[int]) -> tuple[int, ...]:
        """Returns the steps whose output is kept. A key timestep may occur at several steps, or at none."""
        if self.position is not None:
            return (min(round(self.position * len(timesteps)), len(timesteps) - 1),)
        return tuple(step for step, timestep in enumerate(timesteps) if timestep == self.timestep)


@dataclass(frozen=True, slots=True, kw_only=True)
class BroadcastRules:
    """How a plan is made: one rule per kind of attention, any number of rules for MLPs. Empty rules never reuse anything."""

    spatial: AttentionRule | None = None
    temporal: AttentionRule | None = None
    cross: AttentionRule | None = None
    mlp: tuple[MlpRule, ...] = ()

    def attention(self, kind: str) -> AttentionRule | None:
        """Returns the rule for one kind of attention."""
        return {"spatial": self.spatial, "temporal": self.temporal, "cross": self.cross}[kind]

    def to_dict(self) -> dict[str, object]:
        """Returns the rules as JSON values; `rules_from_dict` reads them back."""
        rules: dict[str, object] = {}
        for kind in ATTENTION_KINDS:
            rule = self.attention(kind)
            if rule is not None:
                blocks = {} if rule.blocks is None else {"blocks": list(rule.blocks)}
                rules[kind] = {"range": rule.range_steps, "window": [rule.low, rule.high], **blocks}
        if self.mlp:
            rules["mlp"] = [
                {"stack": r.stack, "blocks": list(r.blocks), "skip_count": r.skip_count}
                | ({"timestep": r.timestep} if r.position is None else {"position": r.position})
                for r in self.mlp
            ]
        return rules

    @property
    def digest(self) -> str:
        """Names the rules in a clip's digest and in reports: 12 hex digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


Rules = BroadcastRules | StepRules | ForesightRules
"""How a clip's reuse is decided: before its first step (rules or a plan file), or while it is rendered (Foresight)."""


NO_BROADCAST = BroadcastRules()


def pyramid(
    spatial: int | None,
    temporal: int | None,
    cross: int | None,
    *,
    window: tuple[int, int],
    mlp: Iterable[MlpRule] = (),
) -> BroadcastRules:
    """Returns rules with one window and one range per kind: `pyramid(2, 4, 6, window=(450, 930))` is PAB246."""

    def rule(range_steps: int | None) -> AttentionRule | None:
        return None if range_steps is None else AttentionRule(range_steps=range_steps, low=window[0], high=window[1])

    return BroadcastRules(spatial=rule(spatial), temporal=rule(temporal), cross=rule(cross), mlp=tuple(mlp))


def read_rules(path: Path) -> Rules:
    """Reads a file of user-made rules, or of a plan as `calibrate` writes it. Raises ValueError saying what is wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{error.strerror}; name a JSON file of rules, or of a plan as calibrate writes it") from error
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"has more than {MAX_FILE_BYTES:,} bytes, which no plan needs; name another file")
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON in UTF-8 ({error}); {_FILE_NEEDS}") from error
    if not isinstance(values, dict):
        raise ValueError(f"holds a JSON {type(values).__name__}; {_FILE_NEEDS}")
    return rules_from_dict(values)


def rules_from_dict(values: Mapping[str, object]) -> Rules:
    """Reads user-made rules, e.g. `{"spatial": {"range": 2, "window": [450, 930]}}` or `{"foresight": {"gamma": 1.0}}`.

    A plan file has its steps under "steps"; its "about" is for readers and is ignored. Raises ValueError naming the key.
    """
    if "steps" in values:
        if others := sorted(set(values) - {"steps", "about"}):
            raise ValueError(f"broadcast rules: steps and {', '.join(others)}; steps decide alone, give no other key")
        return step_rules_from_dict(values["steps"])
    if "foresight" in values:
        if len(values) > 1:
            raise ValueError(
                f"broadcast rules: {', '.join(sorted(values))}; foresight decides alone, give no other key"
            )
        return foresight_from_dict(values["foresight"])
    unknown = sorted(set(values) - set(KINDS))
    if unknown:
        raise ValueError(
            f"broadcast rules: unknown key {unknown[0]!r}, allowed {', '.join(KINDS)}, or foresight or steps instead of "
            "them"
        )
    attention = {kind: _attention_rule(kind, values[kind]) for kind in ATTENTION_KINDS if kind in values}
    mlp = values.get("mlp", [])
    if not isinstance(mlp, list):
        raise ValueError(f"broadcast rules: mlp={mlp!r}, needs a list of entries")
    return BroadcastRules(mlp=tuple(_mlp_rule(entry) for entry in mlp), **attention)


def _attention_rule(kind: str, entry: Any) -> AttentionRule:
    try:
        low, high = entry["window"]
        blocks = tuple(int(block) for block in entry["blocks"]) if "blocks" in entry else None
        return AttentionRule(range_steps=int(entry["range"]), low=int(low), high=int(high), blocks=blocks)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"broadcast rules: {kind}={entry!r}, needs {{'range': R, 'window': [low, high]}}, perhaps with 'blocks' "
            f"({error})"
        ) from error


def _mlp_rule(entry: Any) -> MlpRule:
    try:
        return MlpRule(**{**entry, "blocks": tuple(entry["blocks"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"broadcast rules: mlp entry {entry!r}, needs stack, blocks, skip_count and one of timestep, position "
            f"({error})"
        ) from error
