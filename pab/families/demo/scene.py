"""What a demo clip shows: the attributes of a scene, their colours, and which combinations training never sees."""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

SHAPES = ("circle", "square", "triangle", "star", "ring")
DIRECTIONS = ("left", "right", "up", "down", "still")
SIZES = ("small", "medium", "large")
SPEEDS = ("slow", "normal", "quick")

# Red, green, blue in 0..1. No background is close to a shape's colour, so every shape stands out.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.12),
    "green": (0.16, 0.80, 0.22),
    "blue": (0.22, 0.42, 1.00),
    "yellow": (1.00, 0.90, 0.12),
    "orange": (1.00, 0.52, 0.04),
    "purple": (0.60, 0.18, 0.82),
    "pink": (1.00, 0.48, 0.76),
    "white": (0.98, 0.98, 0.98),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "black": (0.02, 0.02, 0.03),
    "navy": (0.05, 0.07, 0.30),
    "grey": (0.46, 0.47, 0.48),
    "brown": (0.36, 0.21, 0.10),
    "teal": (0.00, 0.40, 0.40),
    "sand": (0.80, 0.70, 0.50),
}

Combination = tuple[str, str, str, str]
"""Shape, colour, background, direction."""

_HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One shape that moves in a straight line, or stands still, before one background."""

    shape: str
    colour: str
    background: str
    direction: str
    size: str
    speed: str
    """How fast the shape moves; without meaning where it stands still."""

    def __post_init__(self) -> None:
        allowed = {
            "shape": SHAPES,
            "colour": tuple(COLOURS),
            "background": tuple(BACKGROUNDS),
            "direction": DIRECTIONS,
            "size": SIZES,
            "speed": SPEEDS,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is not drawn; choose one of {', '.join(values)}")

    @property
    def combination(self) -> Combination:
        """Returns the four attributes that the check reads back."""
        return (self.shape, self.colour, self.background, self.direction)


def is_held_out(combination: Combination) -> bool:
    """Tells whether training leaves this combination out, about one in ten, by a hash of its words."""
    digest = hashlib.sha256("/".join(combination).encode()).digest()
    return int.from_bytes(digest[:4], "big") % _HELD_OUT_ONE_IN == 0


@cache
def combinations(*, held_out: bool) -> tuple[Combination, ...]:
    """Returns all held-out combinations, or all trained ones, in a fixed order."""
    every = itertools.product(SHAPES, COLOURS, BACKGROUNDS, DIRECTIONS)
    return tuple(combination for combination in every if is_held_out(combination) == held_out)


def draw_scenes(num_scenes: int, rng: random.Random, *, held_out: bool = False) -> list[Scene]:
    """Draws scenes evenly over the trained (or the held-out) combinations, sizes and speeds."""
    return [_scene(choice, rng) for choice in _choices(combinations(held_out=held_out), num_scenes, rng)]


def _choices(pool: Sequence[Combination], count: int, rng: random.Random) -> Iterator[Combination]:
    # Without repeats while the pool lasts, so that few scenes still cover much.
    while count > 0:
        taken = rng.sample(pool, min(count, len(pool)))
        yield from taken
        count -= len(taken)


def _scene(combination: Combination, rng: random.Random) -> Scene:
    shape, colour, background, direction = combination
    return Scene(
        shape=shape,
        colour=colour,
        background=background,
        direction=direction,
        size=rng.choice(SIZES),
        speed=rng.choice(SPEEDS),
    )
