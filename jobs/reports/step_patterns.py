"""How step patterns (`s..m`) look and read on every page: one colour for what a step computes, one legend.

The colour says which attentions compute. It is paler where MLPs reuse, and has a dashed edge where a kind computes in some
blocks only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pab.broadcast.plan import PATTERN_LEGEND
from pab.broadcast.residual import RESIDUAL_PATTERN
from pab.broadcast.rules import KINDS

_BY_ATTENTION = {
    (True, True, True): "c0",
    (False, True, True): "c1",
    (True, False, True): "c2",
    (True, True, False): "c3",
    (False, False, True): "c4",
    (False, True, False): "c5",
    (True, False, False): "c7",
    (False, False, False): "c6",
}
"""Whether spatial, temporal and cross attention compute -> the colour's name in `report.css`."""
_STANDS_IN = "c8"
_UNKNOWN = "c6"
_USUAL_KINDS = {4: KINDS, 3: ("spatial", "cross", "mlp"), 2: ("spatial", "mlp")}
"""By the number of letters: models with 3-D attention have no temporal one."""

LEGEND = f"{PATTERN_LEGEND}. The colour says which attentions compute; paler: MLPs reuse; dashed: in some blocks only."


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A pattern, and the classes of `report.css` that it is drawn with."""

    pattern: str
    classes: str


def look_of(pattern: str, kinds: Sequence[str] = ()) -> Look:
    """Returns how a pattern is drawn. `kinds`: of the model's sites, one for each letter; by default the usual ones."""
    letters = pattern.partition(" ")[0]
    if letters.startswith(RESIDUAL_PATTERN):
        return Look(pattern=pattern, classes=_STANDS_IN)
    kinds = kinds or _USUAL_KINDS.get(len(letters), ())
    if len(letters) != len(kinds) or any(
        letter.lower() not in (kind[0], ".") for letter, kind in zip(letters, kinds, strict=True)
    ):
        return Look(pattern=pattern, classes=_UNKNOWN)
    # A kind that the model lacks is never reused.
    computes = dict.fromkeys(KINDS, True) | {kind: letter != "." for kind, letter in zip(kinds, letters, strict=True)}
    colour = _BY_ATTENTION[computes["spatial"], computes["temporal"], computes["cross"]]
    paler, dashed = "" if computes["mlp"] else " paler", "" if letters == letters.lower() else " dashed"
    return Look(pattern=pattern, classes=colour + paler + dashed)


def looks_of(plans: Iterable[tuple[Sequence[str], Sequence[str]]]) -> dict[str, Look]:
    """Returns the looks of all patterns of some plans, the most work first. `plans`: kinds and patterns of each."""
    found = {pattern: look_of(pattern, kinds) for kinds, patterns in plans for pattern in patterns}
    return {name: found[name] for name in sorted(found, key=lambda pattern: (pattern.count("."), pattern))}
