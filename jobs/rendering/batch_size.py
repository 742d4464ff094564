"""How many clips of a kind are rendered together: decided from the seconds per clip that were measured. Free of torch.

Sizes are powers of two, so that a rest of any length is made of sizes that were rendered before: on the compiled path each
size has graphs of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from jobs.settings import AUTO

WORTH = 0.95
"""A larger batch stays if a clip in it takes at most this part of what it takes in the smaller one."""
MOST_FOR_COMPILING = 0.1
"""A size is tried only where compiling for it is expected to cost at most this part of the work that is left."""


@dataclass(slots=True, kw_only=True)
class BatchSize:
    """The size of the next batch of clips that cost the same. Lives as long as their family is loaded.

    `asked`: a fixed size, or AUTO: alone first, then 2, 4, ... up to `most` as long as seconds per clip fall. `most` may
    fall later, when memory is known.
    """

    asked: int
    most: int
    seconds: dict[int, float] = field(default_factory=dict)
    """By size, the least seconds of denoising per clip; batches that compiled anything do not count."""
    compile_s: dict[int, float] = field(default_factory=dict)
    size: int = 1
    """The largest that is known to pay."""
    grows: bool = True

    def next_size(self, clips_left: int) -> int:
        """Returns how many of the clips that are left are rendered next."""
        wanted = self.asked
        if wanted == AUTO:
            wanted = 2 * self.size if self._tries_more(clips_left) else self.size
        return largest_part(min(wanted, self.most, clips_left), own=self.asked)

    def _tries_more(self, clips_left: int) -> bool:
        if not self.grows or self.size not in self.seconds or 2 * self.size > min(self.most, clips_left):
            return False
        compiling_s = 0.0 if 2 * self.size in self.compile_s else max(self.compile_s.values(), default=0.0)
        return compiling_s <= MOST_FOR_COMPILING * clips_left * self.seconds[self.size]

    def measured(self, size: int, seconds_per_clip: float, *, compile_s: float) -> None:
        """Takes in what a batch took: seconds of denoising per clip, and of compiling in all."""
        self.compile_s.setdefault(size, compile_s)
        if compile_s:
            return
        self.seconds[size] = min(seconds_per_clip, self.seconds.get(size, seconds_per_clip))
        if size != 2 * self.size or self.size not in self.seconds:
            return
        if self.seconds[size] <= WORTH * self.seconds[self.size]:
            self.size = size
        else:
            self.grows = False

    @property
    def largest_rendered(self) -> int:
        """The largest batch that was rendered so far."""
        return max(self.compile_s, default=1)

    def broke(self, size: int) -> None:
        """Takes in that a batch failed whose clips could be rendered alone: none so large is tried again."""
        self.most = max(1, size // 2)
        self.size = min(self.size, self.most)


def largest_part(clips: int, *, own: int = 1) -> int:
    """Returns how many of so many clips are rendered next: `own` if there are so many, else the largest power of two."""
    if clips < 1 or clips == own:
        return max(1, clips)
    return int(2 ** (clips.bit_length() - 1))


def parts_of(clips: int, *, own: int = 1) -> list[int]:
    """Returns the sizes in which so many clips are rendered."""
    parts: list[int] = []
    while clips:
        parts.append(largest_part(clips, own=own))
        clips -= parts[-1]
    return parts


def settled(patterns: Sequence[str], seconds: Iterable[float]) -> float:
    """Returns the seconds of a loop with each step at the median of its pattern, so that a warm-up does not count."""
    by_pattern: dict[str, list[float]] = {}
    for pattern, step_s in zip(patterns, seconds, strict=True):
        by_pattern.setdefault(pattern, []).append(step_s)
    return sum(count * median(by_pattern[pattern]) for pattern, count in Counter(patterns).items())
