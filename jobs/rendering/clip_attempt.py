"""One attempt at a clip: what a job knows of it from its row to its record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from jobs.rendering.frames import ClipOnDevice, ComingFrames
from jobs.rendering.loops import joined
from manifests.clip import Clip
from pab.broadcast.plan import BroadcastPlan
from pab.conditioning.frame_masks import FrameMask
from pab.execution.choice import Execution
from pab.execution.compiled import Compiled
from pab.model import EncodedReference
from pab.sampling.denoise import Denoised


@dataclass(slots=True)
class Stages:
    """Seconds by stage of one clip. `current` is the stage that runs, or ran last: where an error came from."""

    seconds: dict[str, float] = field(default_factory=dict)
    current: str = "begin"

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside to a stage; an error inside leaves `current` at it."""
        self.current = stage
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def take(self, shared: Stages, *, share: float) -> None:
        """Adds a share of the seconds that clips went through together, and stands where they stand."""
        self.current = shared.current
        for stage, seconds in shared.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + share * seconds


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt at rendering a clip. It is filled in from its mark to its record, so it is not frozen.

    A job first holds attempts that wait, of which only clip and number count; `begin` makes the one that runs. What waits
    is held as long as the job, so it must never hold frames.
    """

    clip: Clip
    number: int
    """1 for the first; a higher one follows attempts that failed or ended with their group."""
    units: float = 1.0
    """Tokens times steps of what is rendered at once: the measure of its work."""
    company: tuple[str, ...] = ()
    """Ids of the clips that are rendered together, its own too; empty for one that is rendered alone."""
    stages: Stages = field(default_factory=Stages)
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    masks: tuple[FrameMask | None, ...] = ()
    """Per loop, which of its frames are given; None for a loop that begins from noise alone."""
    encoded: tuple[EncodedReference | None, ...] = ()
    """What of the references is encoded."""

    loops: tuple[Denoised, ...] = ()
    """What denoising each loop left; empty until all of them are rendered, and after an error."""
    frames: ComingFrames | None = None
    """The frames of all loops; None until then."""
    execution: Execution = field(default_factory=Execution)
    compiled: Compiled = field(default_factory=Compiled)
    warnings: tuple[str, ...] = ()

    def begin(self, number: int, *, units: float) -> Attempt:
        """Returns the attempt that starts now, with nothing of this one but its clip."""
        return Attempt(clip=self.clip, number=number, units=units)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the mark."""
        return time.monotonic() - self.started

    @property
    def denoised(self) -> Denoised:
        """What was measured and counted over all loops."""
        return joined(self.loops)

    @property
    def plan(self) -> BroadcastPlan:
        """The plan of the first loop: of all, unless they were decided while they were rendered."""
        return self.loops[0].plan

    @property
    def patterns(self) -> tuple[str, ...]:
        """What each step of all loops computed and reused."""
        return tuple(pattern for loop in self.loops for pattern in loop.plan.patterns)

    @property
    def coming(self) -> ComingFrames:
        """The frames of a rendered clip."""
        assert self.frames is not None, f"clip {self.clip.clip_id} is not rendered yet"
        return self.frames

    @property
    def on_device(self) -> ClipOnDevice:
        """When the device worked on it."""
        return ClipOnDevice(denoise=self.denoised.clock, decode=self.coming.clock, compile_s=self.compiled.seconds)
