"""What speaks of a broken clip, read from its frames alone: one colour, nothing moves, flickering, clipped.

It needs no second render. A grid of pixels of some frames is looked at, so it takes milliseconds for clips of any size.
Alarms tell a person where to look; no clip fails by one. (A NaN or an infinite value fails the clip before, at stage decode.)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]

# Thresholds. Tried on the demo model's clips at 12 steps (tests/jobs/test_alarms.py): right ones, wrong ones that show the
# background alone, and right ones that were then frozen, made to flicker, and clipped.
ONE_COLOUR_SHARE = 0.002
"""A frame is of one colour if a smaller share of its pixels is off its median colour. Right: 0.037 and more; wrong: 0."""
BLANK_FRAMES = 0.8
"""More such frames make a clip blank: a fade or an object that leaves is no alarm."""
FROZEN_SHARE = 0.0005
"""A clip is frozen if in no frame a larger share of pixels differs from the first. Right clips: 0.09 and more."""
FLICKER_LEVELS = 5.0
"""More than this (of 255) is flickering. Right clips: 0.3 and less; every second frame brighter by 6 levels: 6."""
CLIPPED_SHARE = 0.8
"""A larger share of values at 0 or 255 is clipped, if both ends have part in it. Right clips: 0.001."""
CLIPPED_AT_EACH_END = 0.1

_OFF_LEVELS = 8
"""Colours that are no more levels apart count as the same: decoders make noise of up to 5 in an area of one colour."""
_GRID_PIXELS = 16_384
_TRIPLES = 32
_AREAS = 8
"""Flickering is looked for in so many areas by so many: pixels of a texture that moves go up and down too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelStatistics:
    """What a clip's frames say of themselves.

    `one_colour`: the share of frames of one colour. `changed`: the largest share of pixels that differ from the first frame;
    `flicker`: levels by which areas go up and down; both None of a single frame, or of two. `low`, `high`: shares of values
    that are 0 and 255.
    """

    one_colour: float
    changed: float | None
    flicker: float | None
    low: float
    high: float

    def facts(self) -> dict[str, float | None]:
        """Returns the statistics as JSON values."""
        return {name: None if value is None else round(value, 5) for name, value in asdict(self).items()}


def pixel_statistics(frames_THWC: Frames) -> PixelStatistics:
    """Returns the statistics of a clip's uint8 RGB frames [T, H, W, 3]; of long or large clips from a part of them."""
    triples = _triples(len(frames_THWC))
    chosen = sorted({frame for triple in triples for frame in triple} or set(range(len(frames_THWC))))
    stride = max(1, math.ceil(math.sqrt(frames_THWC.shape[1] * frames_THWC.shape[2] / _GRID_PIXELS)))
    pixels = frames_THWC[chosen, ::stride, ::stride].astype(np.int16)
    middle = np.median(pixels.reshape(len(pixels), -1, 3), axis=1).astype(np.int16)[:, None, None]
    varied = (np.abs(pixels - middle).max(-1) > _OFF_LEVELS).mean((1, 2))
    changed = (np.abs(pixels - pixels[:1]).max(-1) > _OFF_LEVELS).mean((1, 2))
    return PixelStatistics(
        one_colour=float((varied < ONE_COLOUR_SHARE).mean()),
        changed=float(changed.max()) if len(pixels) > 1 else None,
        flicker=_flicker(pixels, [tuple(map(chosen.index, triple)) for triple in triples]),
        low=float((pixels == 0).mean()),
        high=float((pixels == 255).mean()),
    )


def alarms_of(statistics: PixelStatistics) -> tuple[str, ...]:
    """Returns the alarms that the statistics give, as words of `ALARMS`; none of a clip that looks like a video."""
    found: list[str] = []
    if statistics.one_colour > BLANK_FRAMES:
        found.append("blank")
    elif statistics.changed is not None and statistics.changed < FROZEN_SHARE:
        found.append("frozen")
    if statistics.flicker is not None and statistics.flicker > FLICKER_LEVELS:
        found.append("flickering")
    ends = (statistics.low, statistics.high)
    if sum(ends) > CLIPPED_SHARE and min(ends) > CLIPPED_AT_EACH_END:
        found.append("clipped")
    return tuple(found)


def _triples(num_frames: int) -> list[tuple[int, int, int]]:
    """Returns three frames in a row, as often as there are, or evenly spread over a long clip."""
    starts = range(num_frames - 2)
    if len(starts) > _TRIPLES:
        starts_at = np.linspace(0, num_frames - 3, _TRIPLES).round().astype(int).tolist()
        return [(start, start + 1, start + 2) for start in starts_at]
    return [(start, start + 1, start + 2) for start in starts]


def _flicker(pixels_THWC: npt.NDArray[np.int16], triples: list[tuple[int, ...]]) -> float | None:
    """Returns how far areas are from the middle of the frames before and after, beyond what these two differ by."""
    if not triples:
        return None
    height, width = pixels_THWC.shape[1:3]
    rows, columns = (np.linspace(0, size, min(size, _AREAS), endpoint=False).astype(int) for size in (height, width))
    sums = np.add.reduceat(np.add.reduceat(pixels_THWC.astype(np.float32), rows, axis=1), columns, axis=2)
    counts = np.outer(np.diff([*rows, height]), np.diff([*columns, width]))
    areas = sums / counts[:, :, None]
    before, at, after = (areas[[triple[place] for triple in triples]] for place in range(3))
    beyond = np.abs(at - (before + after) / 2) - np.abs(after - before) / 2
    return float(np.maximum(beyond, 0).mean())
