"""A family on a rank's device: loaded as a job's settings say, with the prompts that are encoded so far."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

import torch

from jobs.rendering.loops import clip_requests
from jobs.settings import JobSettings
from manifests.clip import Clip
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import Rules, rules_from_dict
from pab.execution.choice import Execution
from pab.execution.compiled import Compiled, Graphs, compile_blocks
from pab.family import ClipRequest, Family, LoadRequest
from pab.kernels.float8 import check_gpu
from pab.model import EncodedPrompt, UsesFloat8, UsesKernels, VideoModel
from pab.parallel.mesh import Axis, NodeGroup
from pab.sampling.denoise import LoopSettings, records_loop
from pab.sampling.recorded_loop import LoopRecorder


@dataclass(slots=True, kw_only=True)
class LoadedFamily:
    """A family whose weights are on this rank's device, and by clip key the prompts that are encoded so far, one per loop.

    Not frozen: `prompts` of clips come and go.
    `graphs` counts what was compiled since it was loaded; None where blocks run eagerly. `recorder` replays the loops of
    small clips; None where they are not recorded.
    """

    family: Family
    model: VideoModel
    load_s: float
    execution: Execution
    graphs: Graphs | None = None
    recorder: LoopRecorder | None = None
    prompts: dict[str, tuple[EncodedPrompt, ...]] = field(default_factory=dict)

    def make_room(self) -> Compiled:
        """Makes room for what a clip may need compiled; returns what was compiled so far."""
        if self.graphs is None:
            return Compiled()
        if self.graphs.make_room() and self.recorder is not None:
            self.recorder.forget()
        return self.graphs.so_far()

    def compiled_since(self, before: Compiled) -> Compiled:
        """Returns what was compiled since `make_room` said `before`."""
        return Compiled() if self.graphs is None else self.graphs.so_far().since(before)

    def prompts_of(self, clip: Clip, requests: Sequence[ClipRequest]) -> tuple[EncodedPrompt, ...]:
        """Returns the texts of a clip's loops, encoded now if its job could not encode all at once."""
        return self.prompts.get(clip.key) or tuple(self.model.encode_prompts(requests))

    def loop_settings(self, request: ClipRequest, plan: BroadcastPlan, group: NodeGroup, *, clips: int) -> LoopSettings:
        """Returns how the loop of clips that begin from noise is run."""
        records = records_loop(request, self.family, plan, group, clips=clips)
        return LoopSettings(cache_dtype=self.execution.keep, recorder=self.recorder if records else None)


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
    execution = settings.render.execution(family)
    request = LoadRequest(
        weights=settings.weights_of(family.name),
        precision=settings.render.precision,
        device=str(device),
        clip_axis=clip_axis,
    )
    model = family.load(request)
    if execution.kernels:
        cast(UsesKernels, model).use_kernels()  # its family says that it can
    if execution.linears == "float8":
        if device.type == "cuda":
            check_gpu(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
        cast(UsesFloat8, model).use_float8()
    if execution.compiled:
        compile_blocks(model.block_stacks, backend=settings.compile_backend)
    return LoadedFamily(
        family=family,
        model=model,
        load_s=time.perf_counter() - start,
        execution=execution,
        graphs=Graphs() if execution.compiled else None,
        recorder=LoopRecorder() if execution.records else None,
    )


@torch.inference_mode()
def encode_prompts(loaded: LoadedFamily, clips: Sequence[Clip]) -> float:
    """Encodes the text of all clips; returns the seconds it took.

    One call, because a family with a large text encoder loads it for the call and lets it go before the first clip is
    denoised; it cuts the prompts into batches itself.
    """
    start = time.perf_counter()
    if clips:
        requests = {clip.key: clip_requests(clip) for clip in clips}
        prompts = iter(loaded.model.encode_prompts([request for of_clip in requests.values() for request in of_clip]))
        loaded.prompts.update({key: tuple(islice(prompts, len(of_clip))) for key, of_clip in requests.items()})
    return time.perf_counter() - start
