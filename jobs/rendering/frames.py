"""A clip's frames on their way from the device to the CPU, and the share of time in which the device was busy."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pab.sampling.device_clock import DeviceClock, seconds_between

Frames = npt.NDArray[np.uint8]


class ComingFrames:
    """Frames that the device may still be decoding. A thread fetches them without waiting for work that was queued later.

    `frames_THWC`: uint8 RGB on the device or the CPU, complete when the device has reached `clock`'s last mark; None on
    ranks that do not write the clip.
    """

    def __init__(self, frames_THWC: Tensor | None, clock: DeviceClock) -> None:
        self.clock = clock
        self.size = None if frames_THWC is None else tuple(frames_THWC.shape[:3])
        self._coming: Tensor | None = frames_THWC
        self._here: Frames | None = None
        self._lock = threading.Lock()

    def fetch(self) -> Frames:
        """Returns the frames [T, H, W, 3] on the CPU; waits for them, but not for work that was queued later."""
        with self._lock:
            if self._coming is not None:
                self._here, self._coming = _to_cpu(self._coming, self.clock), None
            assert self._here is not None, "only the clip's root has frames"
            return self._here

    @property
    def decode_s(self) -> float:
        """Seconds that the device took for decoding; waits until it is done."""
        return sum(self.clock.seconds())


def _to_cpu(frames: Tensor, clock: DeviceClock) -> Frames:
    if frames.device.type != "cuda":
        return frames.numpy()
    with torch.cuda.device(frames.device):
        # On a separate stream: the next clip's denoising is already queued on the default one.
        stream = torch.cuda.Stream()
        here = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
        clock.wait()
        with torch.cuda.stream(stream):
            here.copy_(frames, non_blocking=True)
        frames.record_stream(stream)
        stream.synchronize()
    return here.numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipOnDevice:
    """When the device worked on one clip. `compile_s`: the seconds in which it waited while blocks were compiled."""

    denoise: DeviceClock
    decode: DeviceClock
    compile_s: float


@dataclass(slots=True)
class DeviceUse:
    """The share of time in which this rank's device worked on the clips of a family.

    It is measured from the end of the first clip, which warms up and compiles, to the end of the last. The device counts as
    busy between the marks of denoising and of decoding. Gaps between clips count as idle, and so does compiling.
    """

    clips: list[ClipOnDevice] = field(default_factory=list)
    busy_s: float = 0.0
    window_s: float = 0.0
    counted: int = 0
    gaps_s: list[float] = field(default_factory=list)

    def close_window(self) -> None:
        """Adds up the clips so far and starts a new window, e.g. for the next family; waits for the device."""
        clips, self.clips = self.clips, []
        for before, clip in pairwise(clips):
            clip.decode.wait()
            work_s = sum(clip.denoise.seconds()) + sum(clip.decode.seconds())
            self.window_s += seconds_between(before.decode.marks[-1], clip.decode.marks[-1])
            self.busy_s += max(0.0, work_s - clip.compile_s)
            self.gaps_s.append(seconds_between(before.decode.marks[-1], clip.denoise.marks[0]))
            self.counted += 1

    def facts(self) -> dict[str, Any]:
        """Returns the sums as JSON values."""
        return {
            "share": round(self.busy_s / self.window_s, 4) if self.window_s else None,
            "busy_s": round(self.busy_s, 3),
            "window_s": round(self.window_s, 3),
            "clips": self.counted,
            "gap_median_s": round(median(self.gaps_s), 4) if self.gaps_s else None,
        }
