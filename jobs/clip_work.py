"""One clip from its row to its frames, and the same clip without broadcast to compare with. Collective over its ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch

from jobs.settings import JobSettings
from manifests.clip import Clip
from pab.denoise import Denoised, denoise, initial_noise, plan_for
from pab.family import ClipRequest, Family, LoadRequest
from pab.model import EncodedPrompt, VideoModel
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A clip that has its attempt mark. `units`: its tokens times steps, the measure of its work."""

    clip: Clip
    attempt: int
    units: float = 1.0
    stages: Stages = field(default_factory=Stages)
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the mark."""
        return time.monotonic() - self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedFamily:
    """A family whose weights are on this rank's device, and the prompts that are encoded so far, by clip key."""

    family: Family
    model: VideoModel
    load_s: float
    prompts: dict[str, EncodedPrompt] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFrames:
    """What a rendered clip left on this rank. `frames_THWC`: uint8 RGB, None on ranks that do not write."""

    frames_THWC: npt.NDArray[np.uint8] | None
    request: ClipRequest
    denoised: Denoised
    warnings: tuple[str, ...]

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
    """Loads a family's weights onto a device. `clip_axis`: the ranks that share this one's clips, and so its prompts."""
    start = time.perf_counter()
    request = LoadRequest(
        weights=settings.weights, precision=settings.precision, device=str(device), clip_axis=clip_axis
    )
    model = family.load(request)
    return LoadedFamily(family=family, model=model, load_s=time.perf_counter() - start)


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
def render_frames(loaded: LoadedFamily, begun: Begun, *, settings: JobSettings, group: NodeGroup) -> ClipFrames:
    """Renders one clip to frames; its stages are timed in `begun`. Collective over the clip's ranks."""
    clip, stages = begun.clip, begun.stages
    request = clip_request(clip)
    with stages.time("plan"):
        plan = plan_for(loaded.family, request, clip_rules(clip, loaded.family, settings), settings.precision)
    with stages.time("encode_prompt"):
        prompt = loaded.prompts.get(clip.key) or loaded.model.encode_prompts([request])[0]
    return _frames(loaded, request, prompt=prompt, plan=plan, group=group, stages=stages)


@torch.inference_mode()
def render_baseline(
    loaded: LoadedFamily, clip: Clip, *, settings: JobSettings, group: NodeGroup, stages: Stages
) -> ClipFrames:
    """Renders the clip with every site computed at every step: same prompt, seed and steps. Collective."""
    request = clip_request(clip)
    plan = plan_for(loaded.family, request, NO_BROADCAST, settings.precision)
    prompt = loaded.prompts.get(clip.key) or loaded.model.encode_prompts([request])[0]
    return _frames(loaded, request, prompt=prompt, plan=plan, group=group, stages=stages)


def _frames(
    loaded: LoadedFamily,
    request: ClipRequest,
    *,
    prompt: EncodedPrompt,
    plan: BroadcastPlan,
    group: NodeGroup,
    stages: Stages,
) -> ClipFrames:
    model = loaded.model
    with stages.time("denoise"):
        noise = initial_noise(request, model.latent_shape(request))
        denoised = denoise(model, request, prompt=prompt, noise=noise, plan=plan, group=group)
    with stages.time("decode"):
        frames_BTHWC = model.decode(denoised.latents, request, group)
    frames = frames_BTHWC[0].contiguous().numpy() if group.is_clip_root else None
    warnings = list(prompt.warnings)
    if frames is not None and frames.shape[:3] != (request.num_frames, request.height, request.width):
        warnings.append(f"the model gave frames {frames.shape[:3]}, asked for was {_size(request)}")
    return ClipFrames(frames_THWC=frames, request=request, denoised=denoised, warnings=tuple(warnings))


def _size(request: ClipRequest) -> tuple[int, int, int]:
    return request.num_frames, request.height, request.width


def traffic_counts(denoised: Denoised) -> dict[str, int]:
    """Returns what one clip's denoising sent from this rank, by name."""
    return asdict(denoised.traffic)
