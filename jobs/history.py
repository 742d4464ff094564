"""What is known of a clip from the files that its earlier starts left."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipHistory:
    """What the bucket knows of a clip: whether it is recorded, and which of its attempts left a mark or a failure."""

    recorded: bool
    attempts: tuple[int, ...]
    failures: tuple[int, ...]

    @property
    def next_attempt(self) -> int:
        """The number of the attempt to come."""
        return max((*self.attempts, *self.failures), default=0) + 1

    @property
    def killed(self) -> int:
        """How many starts ended with neither record nor failure: they took their group along."""
        return 0 if self.recorded else len(set(self.attempts) - set(self.failures))
