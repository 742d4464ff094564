"""Plans that the guard is tried on: those that leave the steps free in which a clip is decided, and those that do not."""

from __future__ import annotations

from pab.broadcast.rules import Rules, pyramid
from pab.broadcast.step_rules import StepRules
from pab.families.demo.family import DEMO
from pab.families.demo_wan.family import DEMO_WAN
from pab.family import Family

Ranges = tuple[int | None, int | None, int | None]
"""Of spatial, temporal and cross attention."""
_DEMO_WINDOW = (450, 930)
_WAN_WINDOW = (100, 850)
_ALL = (-1, 1001)


def good_plans(family: Family) -> dict[str, Rules]:
    """Returns 20 plans that leave the steps free in which the shape is decided. Raises KeyError for other families."""
    return {DEMO.name: _good_of_demo, DEMO_WAN.name: _good_of_demo_wan}[family.name]()


def _good_of_demo() -> dict[str, Rules]:
    ranges: list[Ranges] = [
        (2, 2, 2), (2, 2, 4), (2, 3, 4), (2, 4, 4), (2, 4, 6), (2, 4, 8), (2, 5, 8), (3, 3, 3), (3, 3, 6), (3, 4, 5),
        (3, 5, 5), (3, 5, 7), (None, 4, 6), (2, None, 6), (2, 4, None), (None, None, 8),
    ]  # fmt: skip
    plans: dict[str, Rules] = {
        "pab" + "-".join(str(each or 1) for each in three): pyramid(*three, window=_DEMO_WINDOW) for three in ranges
    }
    plans |= {name: DEMO.presets[name] for name in ("pab246", "calibrated", "foresight")}
    return plans | {"late": pyramid(3, 5, 7, window=(200, 800))}


def _good_of_demo_wan() -> dict[str, Rules]:
    named = {
        name: DEMO_WAN.presets[name]
        for name in ("pab2-6", "pab3-6", "foresight", "foresight-n2r3")
    }  # fmt: skip
    ranges: list[Ranges] = [
        (2, None, 2), (2, None, 4), (2, None, 8), (3, None, 3), (3, None, 8), (4, None, 4), (4, None, 8), (6, None, 10),
        (None, None, 6), (None, None, 10), (2, None, None), (4, None, None),
    ]  # fmt: skip
    plans: dict[str, Rules] = {f"pab{a or 1}-{c or 1}": pyramid(a, b, c, window=_WAN_WINDOW) for a, b, c in ranges}
    for low, high in ((100, 700), (100, 930), (450, 930), (0, 850)):
        plans[f"pab2-6@{low}-{high}"] = pyramid(2, None, 6, window=(low, high))
    return named | plans


def bad_plans(family: Family) -> dict[str, Rules]:
    """Returns 20 plans that reuse from the second step on, or leave out passes there: the shape is never decided."""
    ranges = [
        (6, 6, 6), (8, 8, 8), (10, 10, 10), (12, 12, 12), (15, 15, 15), (30, 30, 30), (6, 10, 14), (10, 6, 14),
        (14, 10, 6), (5, 15, 30), (30, 15, 5), (15, 5, 30), (8, 16, 24), (24, 16, 8),
    ]  # fmt: skip
    plans: dict[str, Rules] = {"reuse" + "-".join(map(str, three)): pyramid(*three, window=_ALL) for three in ranges}
    passes = {
        "skips1-7": (0, *range(8, 30)), "skips1-9": (0, *range(10, 30)), "skips1-12": (0, *range(13, 30)),
        "every6": tuple(range(0, 30, 6)), "every8": tuple(range(0, 30, 8)), "every10": tuple(range(0, 30, 10)),
    }  # fmt: skip
    return plans | {
        name: StepRules(family=family.name, num_steps=30, passes=steps, groups=()) for name, steps in passes.items()
    }
