"""One attempt at a clip: all that a job knows of it, from the row to the record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from jobs.rendering.frames import ClipOnDevice, ComingFrames
from jobs.rendering.keep_ways import KeepWay
from jobs.rendering.loops import joined
from manifests.clip import Clip
from pab.broadcast.plan import BroadcastPlan
from pab.conditioning.frame_masks import FrameMask
from pab.execution.choice import Execution
from pab.execution.compiled import Compiled
from pab.model import Beginning, EncodedReference
from pab.sampling.denoise import Denoised


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What the GPUs of a clip used for it."""

    joules: float
    gpus: int


class WaitsForEnergy(Protocol):
    """Energy that is being measured; `jobs.rendering.energy` does so."""

    def fetch(self) -> Energy | None:
        """Returns it, or None if it is not known; waits some seconds at most."""


@dataclass(slots=True)
class Stages:
    """Seconds by stage of one clip. `current`: the stage that runs, or ran last. An error came from that stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    current: str = "begin"

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside to a stage. After an error inside, `current` stays at this stage."""
        self.current = stage
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def take(self, shared: Stages, *, share: float) -> None:
        """Adds a share of the seconds of a batch, and takes over its current stage."""
        self.current = shared.current
        for stage, seconds in shared.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + share * seconds


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt at rendering a clip. It is filled in between its mark and its record, so it is not frozen.

    A job first makes waiting attempts, which have only a clip and a number. `begin` then makes the attempt that runs. The
    waiting ones live as long as the job, so they must never hold frames.
    """

    clip: Clip
    number: int
    """1 for the first attempt; higher after attempts that failed or whose group died."""
    units: float = 1.0
    """The amount of work, in tokens times steps, of the clip or of the whole batch that it is in."""
    company: tuple[str, ...] = ()
    """Ids of all clips of the batch, this clip's included; empty for a clip that is rendered alone."""
    stages: Stages = field(default_factory=Stages)
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    masks: tuple[FrameMask | None, ...] = ()
    """Per loop, which of its frames are given; None for a loop that begins from noise only."""
    encoded: tuple[EncodedReference | None, ...] = ()
    """The encoded references."""
    beginning: Beginning | None = field(default=None, init=False)
    """What a clip with an image begins with; None for all others. Ranks do not exchange it with waiting attempts."""

    loops: tuple[Denoised, ...] = ()
    """The result of each loop; empty until all loops are rendered, and after an error."""
    frames: ComingFrames | None = None
    """The frames of all loops; None until all loops are rendered."""
    execution: Execution = field(default_factory=Execution)
    precision: str = ""
    """The number format in which it was rendered."""
    compiled: Compiled = field(default_factory=Compiled)
    less: KeepWay | None = None
    """How outputs were kept, if the device had no memory for what was asked for."""
    instead: str | None = None
    """The milder broadcast that it was rendered with, if samples of what was asked for were not good enough."""
    rendered_s: float = 0.0
    """Seconds from the mark until it was rendered, of a sample."""
    held_s: float = 0.0
    """Seconds for which it waited, rendered, until its job's guard had decided."""
    without_reuse: ComingFrames | None = None
    """The frames of the same clip without reuse, of a sample whose two videos are kept side by side."""
    energy: WaitsForEnergy | None = field(default=None, init=False)
    """What its GPUs use; None where they do not count it."""
    warnings: tuple[str, ...] = ()

    def begin(self, number: int, *, units: float) -> Attempt:
        """Returns the attempt that starts now; it takes only the clip from this one."""
        return Attempt(clip=self.clip, number=number, units=units)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the mark, without those that it was held."""
        return time.monotonic() - self.started - self.held_s

    @property
    def denoised(self) -> Denoised:
        """The measurements and counts of all loops, joined."""
        return joined(self.loops)

    @property
    def plan(self) -> BroadcastPlan:
        """The first loop's plan. All loops have the same plan, unless Foresight decided them."""
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
        """When the device worked on the clip."""
        return ClipOnDevice(denoise=self.denoised.clock, decode=self.coming.clock, compile_s=self.compiled.seconds)
