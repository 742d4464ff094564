"""Moments of a device's work: CUDA events, or the wall clock on a CPU, where nothing is queued."""

from __future__ import annotations

import time

import torch

Mark = torch.cuda.Event | float


def mark_now(device: torch.device) -> Mark:
    """Returns a mark behind everything that the current stream holds so far, without waiting for the device."""
    if device.type != "cuda":
        return time.perf_counter()
    # External: a mark that is set within a recorded loop is set anew by every replay. Elsewhere it means nothing.
    event = torch.cuda.Event(enable_timing=True, external=True)
    event.record()
    return event


def seconds_between(earlier: Mark, later: Mark) -> float:
    """Returns the seconds between two marks of one device, which must have reached both; less than 0 if it did so before."""
    if isinstance(earlier, torch.cuda.Event) and isinstance(later, torch.cuda.Event):
        return earlier.elapsed_time(later) / 1e3
    assert isinstance(earlier, float), "both marks are of one device"
    assert isinstance(later, float), "both marks are of one device"
    return later - earlier
