"""One clip from its row to its frames, and the same clip without broadcast to compare with. Collective over its ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import cast

import torch

from jobs.frames import ClipOnDevice, ComingFrames, Frames
from jobs.references import ClipReferences
from jobs.settings import JobSettings
from manifests.clip import Clip
from pab.compiled import Compiled, Graphs, compile_blocks
from pab.denoise import Denoised, denoise, initial_noise, plan_for
from pab.device_clock import DeviceClock
from pab.execution import Execution, execution_of
from pab.family import ClipRequest, Family, LoadRequest
from pab.given_frames import GivenFrames, TakesReferences
from pab.model import EncodedPrompt, UsesKernels, VideoModel
from pab.parallel import Axis, NodeGroup
from pab.plan import NO_BROADCAST, BroadcastPlan, Rules, rules_from_dict


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
class LoadedFamily:
    """A family whose weights are on this rank's device, and the prompts that are encoded so far, by clip key.

    `graphs` counts what was compiled since it was loaded; None where blocks run eagerly.
    """

    family: Family
    model: VideoModel
    load_s: float
    execution: Execution
    graphs: Graphs | None = None
    prompts: dict[str, EncodedPrompt] = field(default_factory=dict)

    def make_room(self) -> Compiled:
        """Makes room for what a clip may need compiled; returns what was compiled so far."""
        if self.graphs is None:
            return Compiled()
        self.graphs.make_room()
        return self.graphs.so_far()

    def compiled_since(self, before: Compiled) -> Compiled:
        """Returns what was compiled since `make_room` said `before`."""
        return Compiled() if self.graphs is None else self.graphs.so_far().since(before)

    def prompt_of(self, clip: Clip) -> EncodedPrompt:
        """Returns a clip's text, encoded now if its job could not encode all at once."""
        return self.prompts.get(clip.key) or self.model.encode_prompts([clip_request(clip)])[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFrames:
    """What a rendered clip left on this rank. `coming`: its frames, None on ranks that do not write."""

    coming: ComingFrames | None
    request: ClipRequest
    execution: Execution
    denoised: Denoised
    decode: DeviceClock
    compiled: Compiled
    warnings: tuple[str, ...]
    given: GivenFrames | None = None

    @property
    def frames(self) -> Frames | None:
        """The frames [T, H, W, 3], uint8 RGB, once they are here; None on ranks that do not write."""
        return None if self.coming is None else self.coming.fetch()

    @property
    def on_device(self) -> ClipOnDevice:
        """When the device worked on it."""
        return ClipOnDevice(denoise=self.denoised.clock, decode=self.decode, compile_s=self.compiled.seconds)

    @property
    def plan(self) -> BroadcastPlan:
        """The clip's plan."""
        return self.denoised.plan


def clip_request(clip: Clip) -> ClipRequest:
    """Returns what the model is asked for."""
    return ClipRequest(
        prompt=clip.prompt,
        negative_prompt=clip.negative_prompt,
        seed=clip.seed,
        num_frames=clip.num_frames,
        height=clip.height,
        width=clip.width,
        fps=clip.fps,
        num_steps=clip.num_steps,
        guidance_scale=clip.guidance_scale,
    )


def clip_rules(clip: Clip, family: Family, settings: JobSettings) -> Rules:
    """Returns the broadcast rules a clip names: the run's own, else the family's. Raises ValueError naming what there is."""
    own: Mapping[str, dict[str, object]] = settings.broadcast_rules or {}
    if clip.broadcast in own:
        return rules_from_dict(own[clip.broadcast])
    if clip.broadcast in family.presets:
        return family.presets[clip.broadcast]
    allowed = ", ".join([*own, *family.presets])
    raise ValueError(f"clip {clip.clip_id}: broadcast={clip.broadcast!r}, model {family.name} has {allowed}")


def load_family(
    family: Family, settings: JobSettings, device: torch.device, *, clip_axis: Axis | None = None
) -> LoadedFamily:
    """Loads a family's weights onto a device, and has its blocks compiled at their first calls if settings say so.

    `clip_axis`: the ranks that share this one's clips, and so its prompts.
    """
    start = time.perf_counter()
    execution = execution_of(
        family,
        compiled=settings.compile,
        attention=settings.attention,
        device=settings.device,
        precision=settings.precision,
        keep=settings.keep,
    )
    request = LoadRequest(
        weights=settings.weights_of(family.name),
        precision=settings.precision,
        device=str(device),
        clip_axis=clip_axis,
    )
    model = family.load(request)
    if execution.kernels:
        cast(UsesKernels, model).use_kernels()  # its family says that it can
    if execution.compiled:
        compile_blocks(model.block_stacks, backend=settings.compile_backend)
    return LoadedFamily(
        family=family,
        model=model,
        load_s=time.perf_counter() - start,
        execution=execution,
        graphs=Graphs() if execution.compiled else None,
    )


@torch.inference_mode()
def encode_prompts(loaded: LoadedFamily, clips: Sequence[Clip]) -> float:
    """Encodes the text of all clips; returns the seconds it took.

    One call, because a family with a large text encoder loads it for the call and lets it go before the first clip is
    denoised; it cuts the prompts into batches itself.
    """
    start = time.perf_counter()
    if clips:
        prompts = loaded.model.encode_prompts([clip_request(clip) for clip in clips])
        loaded.prompts.update(zip((clip.key for clip in clips), prompts, strict=True))
    return time.perf_counter() - start


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
    request = clip_request(clip)
    with stages.time("plan"):
        plan = plan_for(loaded.family, request, clip_rules(clip, loaded.family, settings), settings.precision)
    with stages.time("encode_prompt"):
        prompt = loaded.prompt_of(clip)
    given = None
    if references is not None:
        with stages.time("encode_references"):
            taker = cast(TakesReferences, loaded.model)  # its family says that it takes them
            given = taker.encode_references(request, references.pixels, references.mask)
    return _frames(loaded, request, prompt=prompt, plan=plan, group=group, stages=stages, given=given)


@torch.inference_mode()
def render_baseline(
    loaded: LoadedFamily,
    clip: Clip,
    *,
    settings: JobSettings,
    group: NodeGroup,
    stages: Stages,
    given: GivenFrames | None = None,
) -> ClipFrames:
    """Renders the clip with every site computed at every step: same prompt, seed, steps and given frames. Collective."""
    request = clip_request(clip)
    plan = plan_for(loaded.family, request, NO_BROADCAST, settings.precision)
    prompt = loaded.prompt_of(clip)
    return _frames(loaded, request, prompt=prompt, plan=plan, group=group, stages=stages, given=given)


def _frames(
    loaded: LoadedFamily,
    request: ClipRequest,
    *,
    prompt: EncodedPrompt,
    plan: BroadcastPlan,
    group: NodeGroup,
    stages: Stages,
    given: GivenFrames | None,
) -> ClipFrames:
    model, before = loaded.model, loaded.make_room()
    with stages.time("denoise"):
        noise = initial_noise(request, model.latent_shape(request))
    wait_for_device(stages, group)
    with stages.time("denoise"):
        denoised = denoise(
            model, request, prompt=prompt, noise=noise, plan=plan, group=group, given=given, keep=loaded.execution.keep
        )
    compiled = loaded.compiled_since(before)
    return decoded(
        loaded, request, prompt=prompt, denoised=denoised, compiled=compiled, group=group, stages=stages, given=given
    )


def wait_for_device(stages: Stages, group: NodeGroup) -> None:
    """Waits until the device has decoded the clip before, so that this is not the next one's time."""
    with stages.time("wait"):
        if group.device.type == "cuda":
            torch.cuda.current_stream(group.device).synchronize()


def decoded(
    loaded: LoadedFamily,
    request: ClipRequest,
    *,
    prompt: EncodedPrompt,
    denoised: Denoised,
    compiled: Compiled,
    group: NodeGroup,
    stages: Stages,
    given: GivenFrames | None = None,
) -> ClipFrames:
    """Has a clip's latents decoded, without waiting for the device. Collective over the clip's ranks."""
    decode = DeviceClock(group.device)
    with stages.time("decode"):
        decode.mark()
        frames_BTHWC = loaded.model.decode(denoised.latents, request, group)
        coming = ComingFrames(frames_BTHWC[0].contiguous(), decode) if group.is_clip_root else None
        decode.mark()
    warnings = list(prompt.warnings)
    if group.is_clip_root and (size := tuple(frames_BTHWC.shape[1:4])) != _size(request):
        warnings.append(f"the model gave frames {size}, asked for was {_size(request)}")
    return ClipFrames(
        coming=coming,
        request=request,
        execution=loaded.execution,
        denoised=denoised,
        decode=decode,
        compiled=compiled,
        warnings=tuple(warnings),
        given=given,
    )


def _size(request: ClipRequest) -> tuple[int, int, int]:
    return request.num_frames, request.height, request.width


def traffic_counts(denoised: Denoised) -> dict[str, int]:
    """Returns what one clip's denoising sent from this rank, by name."""
    return asdict(denoised.traffic)
