"""What is known of a clip from the files that its earlier starts left."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

WITHDRAWN = {"withdrawn": True}
"""What replaces a mark whose attempt does not count, so that it says so even if the store does not let it be removed."""


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

    def is_given_up(self, max_attempts: int) -> bool:
        """Whether it is not to be tried again, record or not."""
        return is_given_up(self.failures, max_attempts) or self.next_attempt > max_attempts

    @property
    def killed_text(self) -> str:
        """What a failure says of a clip whose last attempt ended with its group."""
        return f"killed its group {self.killed} time{'' if self.killed == 1 else 's'}"

    @property
    def killed(self) -> int:
        """How many starts ended with neither record nor failure: they took their group along."""
        return 0 if self.recorded else len(set(self.attempts) - set(self.failures))


def is_given_up(failures: Collection[int], max_attempts: int) -> bool:
    """Whether the numbers of a clip's failures say that it is not tried again.

    A failure bears the number of its attempt. One that is final, whatever the attempt, bears `max_attempts` or more, so
    that a listing alone shows which clips failed for good.
    """
    return max(failures, default=0) >= max_attempts


def is_withdrawn(mark: bytes) -> bool:
    """Whether a mark says that its attempt was interrupted from outside and does not count."""
    try:
        return bool(json.loads(mark) == WITHDRAWN)
    except ValueError:
        return False
