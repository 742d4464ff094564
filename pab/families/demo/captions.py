"""Says in plain English what a scene shows: several templates, synonyms, and attributes that may stay unsaid."""

import random
from dataclasses import dataclass

from pab.families.demo.scene import Scene

SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "dot", "ball"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "ring", "hoop", "donut"),
}
COLOUR_WORDS = {
    "red": ("red", "red", "red", "scarlet"),
    "green": ("green", "green", "green", "emerald"),
    "blue": ("blue", "blue", "blue", "azure"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
    "orange": ("orange",),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "pink", "rose"),
    "white": ("white",),
}
BACKGROUND_WORDS = {
    "black": ("black",),
    "navy": ("navy", "navy", "navy blue"),
    "grey": ("grey", "gray"),
    "brown": ("brown", "brown", "chocolate"),
    "teal": ("teal", "teal", "turquoise"),
    "sand": ("sand", "sandy", "beige"),
}
SIZE_WORDS = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "large", "big", "huge"),
}
SPEED_WORDS = {"slow": ("slowly", "slowly", "gently"), "normal": ("steadily",), "quick": ("quickly", "fast", "rapidly")}
DIRECTION_WORDS = {
    "left": ("left", "left", "to the left", "leftward", "leftwards", "from right to left"),
    "right": ("right", "right", "to the right", "rightward", "rightwards", "from left to right"),
    "up": ("up", "up", "upward", "upwards", "to the top"),
    "down": ("down", "down", "downward", "downwards", "to the bottom"),
}
# The verb as "-ing" and as "-s".
MOVING_VERBS = {
    None: (
        ("moving", "moves"),
        ("moving", "moves"),
        ("drifting", "drifts"),
        ("sliding", "slides"),
        ("gliding", "glides"),
        ("floating", "floats"),
        ("travelling", "travels"),
        ("flying", "flies"),
    ),
    "up": (("rising", "rises"),),
    "down": (("falling", "falls"), ("sinking", "sinks")),
}
STILL_PHRASES = (
    ("standing still", "stands still"),
    ("standing still", "stands still"),
    ("resting", "rests"),
    ("staying in place", "stays in place"),
    ("not moving", "does not move"),
)
_ARTICLES = ("a", "a", "a", "one", "the", "")
_VOWELS = ("a", "e", "i", "o", "u")
_OPENINGS = ("", "", "", "", "", "a video of", "a clip of", "an animation of")
_BEFORE = ("on a {} background", "on a {} background", "on {}", "over {}", "over a {} background")
_BEHIND = ("against a {} backdrop", "against {}", "in front of a {} background", "with a {} background")

NAMED_ATTRIBUTES = ("shape", "colour", "background", "direction", "size", "speed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A sentence about a scene and the names of the attributes that it states."""

    text: str
    stated: frozenset[str]


def write_caption(scene: Scene, rng: random.Random, *, complete: bool = False) -> Caption:
    """Writes a caption of the scene. With `complete`, states shape, colour, background and direction always."""
    stated = _choose_stated(scene, rng, complete=complete)
    subject = _subject(scene, stated, rng)
    motion, plain_direction = _motion(scene, stated, rng)
    place = rng.choice(_BEFORE + _BEHIND).format(rng.choice(BACKGROUND_WORDS[scene.background]))
    if "background" not in stated:
        place = ""
    ing, finite = motion
    parts = rng.choice(
        (
            (subject, ing, place),
            (subject, ing, place),
            (subject, finite, place),
            (subject, finite, place),
            (place, subject, finite),
            (subject, place, ing),
            (subject, f"that {finite}" if finite else "", place),
            (subject, plain_direction, place),
        )
    )
    sentence = " ".join(part for part in parts if part)
    opening = rng.choice(_OPENINGS)
    return Caption(text=f"{opening} {sentence}".strip(), stated=frozenset(stated))


def _choose_stated(scene: Scene, rng: random.Random, *, complete: bool) -> set[str]:
    probability = {
        "shape": 0.95,
        "colour": 0.92,
        "background": 0.88,
        "direction": 0.9,
        "size": 0.3 if scene.size == "medium" else 0.75,
        "speed": 0.1 if scene.speed == "normal" else 0.75,
    }
    if complete:
        probability |= dict.fromkeys(("shape", "colour", "background", "direction"), 1.0)
    stated = {name for name in NAMED_ATTRIBUTES if rng.random() < probability[name]}
    if "direction" not in stated or scene.direction == "still":
        stated.discard("speed")
    return stated


def _subject(scene: Scene, stated: set[str], rng: random.Random) -> str:
    words = [rng.choice(_ARTICLES)]
    if "size" in stated:
        words.append(rng.choice(SIZE_WORDS[scene.size]))
    if "colour" in stated:
        words.append(rng.choice(COLOUR_WORDS[scene.colour]))
    words.append(rng.choice(SHAPE_WORDS[scene.shape]) if "shape" in stated else rng.choice(("shape", "object")))
    if words[0] == "a" and words[1].startswith(_VOWELS):
        words[0] = "an"
    return " ".join(word for word in words if word)


def _motion(scene: Scene, stated: set[str], rng: random.Random) -> tuple[tuple[str, str], str]:
    # Returns the motion with an "-ing" verb and with an "-s" verb, and without any verb.
    if "direction" not in stated:
        return ("", ""), ""
    if scene.direction == "still":
        ing, finite = rng.choice(STILL_PHRASES)
        return (ing, finite), rng.choice(("still", "motionless"))
    own_verbs = MOVING_VERBS.get(scene.direction, ())
    direction = rng.choice(DIRECTION_WORDS[scene.direction])
    if own_verbs and rng.random() < 0.3:
        verbs = rng.choice(own_verbs)
        direction_said = rng.choice(("", direction))
    else:
        verbs, direction_said = rng.choice(MOVING_VERBS[None]), direction
    adverb = rng.choice(SPEED_WORDS[scene.speed]) if "speed" in stated else ""
    order = rng.choice(((adverb, direction_said), (direction_said, adverb)))
    tail = " ".join(word for word in order if word)
    plain = " ".join(word for word in (direction, adverb) if word)
    return (f"{verbs[0]} {tail}".strip(), f"{verbs[1]} {tail}".strip()), plain
