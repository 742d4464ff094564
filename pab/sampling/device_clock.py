"""Marks in a device's work that are read later."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch

from pab.parallel.marks import Mark, mark_now, seconds_between


@dataclass(slots=True)
class DeviceClock:
    """Sets marks in the current stream without waiting for the device; the seconds between them are read later."""

    device: torch.device
    marks: list[Mark] = field(default_factory=list)
    late: int = 0
    """How many marks were set when the device had already reached the one before: it had less than a step to work on."""

    def mark(self) -> None:
        """Sets a mark after everything that is queued so far."""
        if self.marks and isinstance(self.marks[-1], torch.cuda.Event):
            self.late += self.marks[-1].query()
        self.marks.append(mark_now(self.device))

    def wait(self) -> None:
        """Waits until the device has reached the last mark."""
        if self.marks and isinstance(self.marks[-1], torch.cuda.Event):
            self.marks[-1].synchronize()

    def seconds(self) -> list[float]:
        """Returns the seconds between neighbouring marks; waits for the device."""
        self.wait()
        return [seconds_between(earlier, later) for earlier, later in pairwise(self.marks)]
