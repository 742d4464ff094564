"""One clip from its row to its frames, and the same clip without broadcast to compare with. Collective over its ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import torch
from torch import Tensor

from jobs.rendering.frames import ClipOnDevice, ComingFrames, Frames
from jobs.rendering.loaded_family import LoadedFamily, clip_rules
from jobs.rendering.loops import clip_loops, clip_requests, joined
from jobs.rendering.references import ClipReferences
from jobs.settings import JobSettings
from manifests.clip import Clip
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import NO_BROADCAST
from pab.conditioning.frame_masks import FrameMask
from pab.execution.choice import Execution
from pab.execution.compiled import Compiled
from pab.family import ClipRequest, Family
from pab.model import Beginning, EncodedPrompt, EncodedReference, TakesReferences
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import Denoised, LoopSettings, denoise, initial_noise, plan_for
from pab.sampling.device_clock import DeviceClock


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A clip that has its attempt mark. `units`: tokens times steps of what is rendered at once, the measure of its work.

    `company`: ids of the clips that are rendered together, its own too; empty for one that is rendered alone.
    """

    clip: Clip
    attempt: int
    units: float = 1.0
    company: tuple[str, ...] = ()
    stages: Stages = field(default_factory=Stages)
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the mark."""
        return time.monotonic() - self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """What gives frames to a clip's loops: per loop a mask, or None, and what of the references is encoded."""

    masks: tuple[FrameMask | None, ...]
    encoded: tuple[EncodedReference | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFrames:
    """What a rendered clip left on this rank. `coming`: its frames, None on ranks that do not write.

    `loops`: what denoising each loop left.
    """

    coming: ComingFrames | None
    requests: tuple[ClipRequest, ...]
    execution: Execution
    loops: tuple[Denoised, ...]
    decode: DeviceClock
    compiled: Compiled
    warnings: tuple[str, ...]
    conditioning: Conditioning

    @property
    def frames(self) -> Frames | None:
        """The frames [T, H, W, 3], uint8 RGB, once they are here; None on ranks that do not write."""
        return None if self.coming is None else self.coming.fetch()

    @property
    def on_device(self) -> ClipOnDevice:
        """When the device worked on it."""
        return ClipOnDevice(denoise=self.denoised.clock, decode=self.decode, compile_s=self.compiled.seconds)

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


@torch.inference_mode()
def render_frames(
    loaded: LoadedFamily,
    begun: Begun,
    *,
    settings: JobSettings,
    group: NodeGroup,
    references: ClipReferences | None = None,
) -> ClipFrames:
    """Renders one clip to frames; its stages are timed in `begun`. Collective over the clip's ranks."""
    clip, stages = begun.clip, begun.stages
    requests = clip_requests(clip)
    with stages.time("plan"):
        plan = plan_for(
            loaded.family, requests[0], clip_rules(clip, loaded.family, settings), settings.render.precision
        )
    with stages.time("encode_prompt"):
        prompts = loaded.prompts_of(clip, requests)
    if references is not None:
        with stages.time("encode_references"):
            encoded = _taker(loaded).encode_references(requests[0], references.pixels)
            conditioning = Conditioning(masks=references.masks, encoded=tuple(encoded))
    else:
        conditioning = Conditioning(masks=_masks(clip, loaded.family))
    rendering = Rendering(loaded=loaded, clip=clip, requests=requests, prompts=prompts, conditioning=conditioning)
    return rendering.frames(plan, group, stages)


@torch.inference_mode()
def render_baseline(
    loaded: LoadedFamily,
    clip: Clip,
    *,
    settings: JobSettings,
    group: NodeGroup,
    stages: Stages,
    conditioning: Conditioning,
) -> ClipFrames:
    """Renders the clip with every site computed at every step: same prompt, seed, steps and references. Collective."""
    requests = clip_requests(clip)
    plan = plan_for(loaded.family, requests[0], NO_BROADCAST, settings.render.precision)
    prompts = loaded.prompts_of(clip, requests)
    rendering = Rendering(loaded=loaded, clip=clip, requests=requests, prompts=prompts, conditioning=conditioning)
    return rendering.frames(plan, group, stages)


def wait_for_device(stages: Stages, group: NodeGroup) -> None:
    """Waits until the device has decoded the clip before, so that this is not the next one's time."""
    with stages.time("wait"):
        if group.device.type == "cuda":
            torch.cuda.current_stream(group.device).synchronize()


def _taker(loaded: LoadedFamily) -> TakesReferences:
    return cast(TakesReferences, loaded.model)  # its family says that it takes them


def _masks(clip: Clip, family: Family) -> tuple[FrameMask | None, ...]:
    if family.references is not None:
        return family.references.masks(None, (), clip.num_frames, clip_loops(clip))
    if clip.loops > 1:
        raise ValueError(f"clip {clip.clip_id}: loops={clip.loops}, {family.name} renders clips of one loop")
    return (None,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A clip about to be rendered, loop by loop. `decoded` ends what was denoised elsewhere too."""

    loaded: LoadedFamily
    clip: Clip
    requests: tuple[ClipRequest, ...]
    prompts: tuple[EncodedPrompt, ...]
    conditioning: Conditioning

    def frames(self, plan: BroadcastPlan, group: NodeGroup, stages: Stages) -> ClipFrames:
        """Renders all loops and joins their frames. Collective."""
        before = self.loaded.make_room()
        loops: list[Denoised] = []
        for loop in range(len(self.requests)):
            given = self._given(loop, loops, group, stages)
            loops.append(self._denoise(loop, plan, group, stages, given))
        return self.decoded(loops, self.loaded.compiled_since(before), group, stages)

    def decoded(
        self, loops: Sequence[Denoised], compiled: Compiled, group: NodeGroup, stages: Stages
    ) -> ClipFrames:  # fmt: skip
        """Has all loops' latents decoded, one loop's without waiting for the device. Collective."""
        decode = DeviceClock(group.device)
        with stages.time("decode"):
            decode.mark()
            frames_THWC = self._decode(loops, group)
            coming = ComingFrames(frames_THWC.contiguous(), decode) if group.is_clip_root else None
            decode.mark()
        return ClipFrames(
            coming=coming,
            requests=self.requests,
            execution=self.loaded.execution,
            loops=tuple(loops),
            decode=decode,
            compiled=compiled,
            warnings=self._warnings(tuple(frames_THWC.shape[:3]) if group.is_clip_root else None),
            conditioning=self.conditioning,
        )

    def _given(
        self, loop: int, before: Sequence[Denoised], group: NodeGroup, stages: Stages
    ) -> Beginning | None:  # fmt: skip
        mask, encoded = self.conditioning.masks[loop], list(self.conditioning.encoded)
        if mask is None:
            return None
        with stages.time("condition_frames"):
            if before:
                length = clip_loops(self.clip).condition_frame_length
                last, request = before[-1].latents, self.requests[loop - 1]
                encoded.append(_taker(self.loaded).encode_end(last, request, latent_frames=length, group=group))
            return _taker(self.loaded).given_frames(self.requests[loop], encoded, mask)

    def _denoise(
        self, loop: int, plan: BroadcastPlan, group: NodeGroup, stages: Stages, given: Beginning | None
    ) -> Denoised:
        request, loaded = self.requests[loop], self.loaded
        model = loaded.model
        settings = LoopSettings(keep=loaded.execution.keep)
        if given is None:
            settings = loaded.loop_settings(request, plan, group, clips=1)
        with stages.time("denoise"):
            noise = initial_noise(request, model.latent_shape(request))
        wait_for_device(stages, group)
        with stages.time("denoise"):
            return denoise(
                model,
                request,
                prompt=self.prompts[loop],
                noise=noise,
                plan=plan,
                group=group,
                given=given,
                loop=settings,
            )

    def _decode(self, loops: Sequence[Denoised], group: NodeGroup) -> Tensor:
        """Returns the frames [T, H, W, 3] of all loops; what one repeats of the loop before is left out."""
        rules = self.loaded.family.references
        repeated = 0 if rules is None else rules.repeated_frames(clip_loops(self.clip))
        parts = []
        for loop, (denoised, request) in enumerate(zip(loops, self.requests, strict=True)):
            frames_THWC = self.loaded.model.decode(denoised.latents, request, group)[
                0 if group.is_clip_root else slice(0)
            ]
            if group.is_clip_root:
                frames_THWC = frames_THWC[repeated if loop else 0 :]
            # A device has room for one loop's frames, not for those of all.
            parts.append(frames_THWC.cpu() if len(loops) > 1 else frames_THWC)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _warnings(self, size: tuple[int, ...] | None) -> tuple[str, ...]:
        warnings = list(dict.fromkeys(warning for prompt in self.prompts for warning in prompt.warnings))
        rules, clip = self.loaded.family.references, self.clip
        num_frames = clip.num_frames if rules is None else rules.video_frames(clip.num_frames, clip_loops(clip))
        asked = (num_frames, clip.height, clip.width)
        if size is not None and size != asked:
            warnings.append(f"the model gave frames {size}, asked for was {asked}")
        return tuple(warnings)
