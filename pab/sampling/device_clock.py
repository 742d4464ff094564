"""Marks in a device's work that are read later: CUDA events, or the wall clock on a CPU, where nothing is queued."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

import torch

Mark = torch.cuda.Event | float


@dataclass(slots=True)
class DeviceClock:
    """Sets marks in the current stream without waiting for the device; the seconds between them are read later."""

    device: torch.device
    marks: list[Mark] = field(default_factory=list)

    def mark(self) -> None:
        """Sets a mark after everything that is queued so far."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def wait(self) -> None:
        """Waits until the device has reached the last mark."""
        if self.marks and isinstance(self.marks[-1], torch.cuda.Event):
            self.marks[-1].synchronize()

    def seconds(self) -> list[float]:
        """Returns the seconds between neighbouring marks; waits for the device."""
        self.wait()
        return [seconds_between(earlier, later) for earlier, later in pairwise(self.marks)]


def seconds_between(earlier: Mark, later: Mark) -> float:
    """Returns the seconds between two marks of one device, which must have reached both."""
    if isinstance(earlier, torch.cuda.Event) and isinstance(later, torch.cuda.Event):
        return earlier.elapsed_time(later) / 1e3
    assert isinstance(earlier, float), "both marks are of one device"
    assert isinstance(later, float), "both marks are of one device"
    return later - earlier
