"""A clip's frames on their way from the device to the CPU, and the share of time in which the device was busy."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jobs.media.sound import SoundTrack
from pab.model import NotFiniteError, Sound, not_finite_pixels
from pab.parallel.marks import seconds_between
from pab.sampling.device_clock import DeviceClock

Frames = npt.NDArray[np.uint8]


class ComingFrames:
    """Frames that the device may still be decoding. A thread fetches them without waiting for work that was queued later.

    `frames_THWC`: uint8 RGB on the device or the CPU, complete when the device has reached `clock`'s last mark; None on
    ranks that do not write the clip. `not_finite`: beside them, one number: how many decoded values were NaN or infinite;
    None where nobody counted. `sound`: of this clip alone, of models that render it. `pieces`: as `DecodedFrames` has it.
    """

    def __init__(
        self,
        frames_THWC: Tensor | None,
        clock: DeviceClock,
        not_finite: Tensor | None = None,
        sound: Sound | None = None,
        pieces: str | None = None,
    ) -> None:
        self.clock = clock
        self.pieces = pieces
        self.size = None if frames_THWC is None else tuple(frames_THWC.shape[:3])
        self._coming: list[Tensor] | None = None
        if frames_THWC is not None:
            self._coming = [frames_THWC] if not_finite is None else [frames_THWC, not_finite]
            self._coming += [] if sound is None else [sound.samples]
        self._rate = None if sound is None else sound.rate
        self._track: SoundTrack | None = None
        self._here: Frames | None = None
        self._not_finite = 0
        self._lock = threading.Lock()

    def fetch(self) -> Frames:
        """Returns the frames [T, H, W, 3] on the CPU; waits for them, but not for work that was queued later.

        Raises NotFiniteError, at every call, if a decoded value was NaN or infinite.
        """
        with self._lock:
            if self._coming is not None:
                frames, *counts = _to_cpu(self._coming, self.clock)
                if self._rate is not None:
                    self._track = SoundTrack(samples=counts.pop().numpy(), rate=self._rate)
                self._here, self._coming = frames.numpy(), None
                self._not_finite = sum(int(count) for count in counts)
            assert self._here is not None, "only the clip's root has frames"
            if self._not_finite:
                raise NotFiniteError(not_finite_pixels(self._not_finite, self._here.size))
            return self._here

    @property
    def sound(self) -> SoundTrack | None:
        """The clip's sound, once the frames were fetched; None of a silent clip."""
        return self._track

    @property
    def spoilt(self) -> bool:
        """Whether the frames were fetched and hold a value that was NaN or infinite."""
        return self._not_finite > 0

    @property
    def decode_s(self) -> float:
        """Seconds that the device took for decoding; waits until it is done."""
        return sum(self.clock.seconds())


def _to_cpu(coming: Sequence[Tensor], clock: DeviceClock) -> list[Tensor]:
    device = coming[0].device
    if device.type != "cuda":
        return list(coming)
    with torch.cuda.device(device):
        # On a separate stream: the next clip's denoising is already queued on the default one.
        stream = torch.cuda.Stream()
        here = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in coming]
        clock.wait()
        with torch.cuda.stream(stream):
            for target, each in zip(here, coming, strict=True):
                target.copy_(each, non_blocking=True)
        for each in coming:
            each.record_stream(stream)
        stream.synchronize()
    return here


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
