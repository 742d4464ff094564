"""The batch size: how many clips of a kind are rendered together, decided by measured seconds per clip. Needs no torch.

Compiled blocks have separate graphs for each size. Sizes are powers of two, so that the last clips, however many, are
rendered in sizes that have their graphs already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from jobs.render_settings import AUTO

WORTH = 0.95
"""A larger batch size is kept if its seconds per clip are at most this share of the smaller size's."""
MOST_FOR_COMPILING = 0.1
"""A size is tried only if compiling for it is expected to take at most this share of the time for the clips left."""


@dataclass(slots=True, kw_only=True)
class BatchSize:
    """The size of the next batch of one kind of clip. Lives as long as the family is loaded.

    `asked`: a fixed size, or AUTO: 1, then 2, 4, ... up to `most`, as long as the seconds per clip fall. `most` may be
    lowered later, when the memory per clip is known.
    """

    asked: int
    most: int
    seconds: dict[int, float] = field(default_factory=dict)
    """By size, the least seconds of denoising per clip, without batches in which something was compiled."""
    compile_s: dict[int, float] = field(default_factory=dict)
    size: int = 1
    """The largest size that was measured to be worth it."""
    grows: bool = True

    def next_size(self, clips_left: int) -> int:
        """Returns how many of the clips left are rendered next."""
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
        """Takes a batch's times: seconds of denoising per clip, and seconds of compiling for the whole batch."""
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
        """The size of the largest batch so far."""
        return max(self.compile_s, default=1)

    def broke(self, size: int) -> None:
        """Is called when a batch failed whose clips could be rendered alone: this size is not tried again, nor any larger."""
        self.most = max(1, size // 2)
        self.size = min(self.size, self.most)


def largest_part(clips: int, *, own: int = 1) -> int:
    """Returns how many of `clips` are rendered next: all if they are `own` in number, else the largest power of two."""
    if clips < 1 or clips == own:
        return max(1, clips)
    return int(2 ** (clips.bit_length() - 1))


def parts_of(clips: int, *, own: int = 1) -> list[int]:
    """Returns the batch sizes in which `clips` clips are rendered."""
    parts: list[int] = []
    while clips:
        parts.append(largest_part(clips, own=own))
        clips -= parts[-1]
    return parts


def settled(patterns: Sequence[str], seconds: Iterable[float]) -> float:
    """Returns a loop's seconds with every step at the median of the steps of its pattern, so a warm-up does not count."""
    by_pattern: dict[str, list[float]] = {}
    for pattern, step_s in zip(patterns, seconds, strict=True):
        by_pattern.setdefault(pattern, []).append(step_s)
    return sum(count * median(by_pattern[pattern]) for pattern, count in Counter(patterns).items())
