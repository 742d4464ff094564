"""A family on a rank's device, loaded as the job's settings say, with the prompts encoded so far."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch

from jobs.render_settings import IN_TURN, RECORD_OFF, RECORD_ON
from jobs.rendering.guarded_plans import NONE, plan_key
from jobs.rendering.keep_ways import KeepWay, kind_key, ways_down
from jobs.rendering.loops import clip_requests
from jobs.rendering.rules_of_clips import clip_rules
from jobs.settings import JobSettings
from manifests.clip import Clip
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import NO_BROADCAST, Rules
from pab.execution.choice import Execution
from pab.execution.compiled import Compiled, Graphs, run_as
from pab.family import ClipRequest, Family, LoadRequest
from pab.kernels import flash3, flash3_float8, float8
from pab.model import EncodedPrompt, VideoModel
from pab.parallel.mesh import Axis, NodeGroup
from pab.sampling.denoise import LoopSettings, loop_settings
from pab.sampling.recorded_loop import LoopRecorder, run_again
from pab.weights.lora import Lora


@dataclass(slots=True, kw_only=True)
class LoadedFamily:
    """A family whose weights are on this rank's device. Not frozen: `prompts` are added and removed.

    `prompts`: by clip key, the encoded prompts, one per loop. `graphs`: counts what was compiled since the family was
    loaded; None if blocks run eagerly. `recorder`: replays loops; None if none is recorded.
    `levels`: by kind of clip (`keep_ways.kind_key`), how many ways down its clips are rendered, because the device had no
    more memory. `instead`: by guarded plan (`guarded_plans.plan_key`), the milder broadcast that the job's guard chose.
    `shared`: whether several ranks render a clip together. `rows_in_turn`: that of `LoopSettings`. `all_loops`: that of
    `records_loop`.
    """

    family: Family
    model: VideoModel
    load_s: float
    execution: Execution
    precision: str = "float32"
    graphs: Graphs | None = None
    recorder: LoopRecorder | None = None
    prompts: dict[str, tuple[EncodedPrompt, ...]] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)
    instead: dict[str, str] = field(default_factory=dict)
    shared: bool = False
    rows_in_turn: bool = False
    all_loops: bool = False

    def ways(self, clip: Clip, settings: JobSettings) -> tuple[KeepWay, ...]:
        """Returns the ways to keep a clip's outputs, all of them first. Raises ValueError for an unknown broadcast."""
        instead = self.instead_of(clip, settings)
        name, rules = instead or clip.broadcast, self.rules_of(clip, settings)
        return ways_down(self.family, name, rules, self.execution.keep, few=self.shared)

    def instead_of(self, clip: Clip, settings: JobSettings) -> str | None:
        """Returns the milder broadcast that a clip gets by the guard; None for the one that was asked for."""
        rules = clip_rules(clip, self.family, settings)
        return self.instead.get(plan_key(clip, rules.digest, settings.render.min_quality))

    def rules_of(self, clip: Clip, settings: JobSettings) -> Rules:
        """Returns the rules that a clip is rendered by. Raises ValueError for an unknown broadcast."""
        instead = self.instead_of(clip, settings)
        if instead is None:
            return clip_rules(clip, self.family, settings)
        return NO_BROADCAST if instead == NONE else self.family.presets[instead]

    def way(self, clip: Clip, settings: JobSettings) -> KeepWay:
        """Returns the way in which a clip is rendered now."""
        ways = self.ways(clip, settings)
        return ways[min(self.levels.get(kind_key(clip), 0), len(ways) - 1)]

    def keep_less(self, clip: Clip, settings: JobSettings) -> bool:
        """Goes one way down for all clips of this clip's kind; False if there is none."""
        level = self.levels.get(kind_key(clip), 0) + 1
        if level >= len(self.ways(clip, settings)):
            return False
        self.levels[kind_key(clip)] = level
        return True

    def record_no_more(self) -> bool:
        """Lets no further loop be recorded, for their memory; False if none takes any."""
        if self.recorder is None or not self.recorder.takes_memory:
            return False
        self.stop_recording()
        return True

    def stop_recording(self) -> None:
        """Drops all recorded loops, and lets no further one be recorded."""
        if self.recorder is not None:
            self.recorder.stop()

    def forget_loops(self) -> None:
        """Drops all recorded loops."""
        if self.recorder is not None:
            self.recorder.forget()

    def let_go(self) -> None:
        """Frees the memory of the device that nothing needs, after it had no more."""
        self.forget_loops()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def make_room(self) -> Compiled:
        """Makes room for the graphs that the next clip may need; returns the count of what was compiled so far."""
        if self.graphs is None:
            return Compiled()
        if self.graphs.make_room():
            self.forget_loops()
        return self.graphs.so_far()

    def compiled_since(self, before: Compiled) -> Compiled:
        """Returns what was compiled since `make_room` returned `before`."""
        return Compiled() if self.graphs is None else self.graphs.so_far().since(before)

    def prompts_of(self, clip: Clip, requests: Sequence[ClipRequest]) -> tuple[EncodedPrompt, ...]:
        """Returns the encoded prompts of a clip's loops; encodes them now if the job could not encode all in one call."""
        return self.prompts.get(clip.key) or tuple(self.model.encode_prompts(requests))

    def loop_settings(
        self, request: ClipRequest, plan: BroadcastPlan, group: NodeGroup, *, clips: int, keep: str
    ) -> LoopSettings:
        """Returns the settings of a loop that begins from noise, for one clip or a batch."""
        loop = loop_settings(
            request, self.family, plan, group, self.recorder, clips=clips, rows_in_turn=self.rows_in_turn,
            all_loops=self.all_loops,
        )  # fmt: skip
        return replace(loop, cache_dtype=keep)


def load_family(
    family: Family,
    settings: JobSettings,
    device: torch.device,
    *,
    clip_axis: Axis | None = None,
    loras: tuple[Lora, ...] | None = None,
) -> LoadedFamily:
    """Loads a family's weights onto a device. If the settings ask for it, its blocks are compiled at their first calls.

    `clip_axis`: the ranks that share their clips, and so their prompts, with this one. `loras`: those of the clips; None:
    those of the run.
    """
    start = time.perf_counter()
    execution = settings.render.execution(family)
    request = LoadRequest(
        weights=settings.weights_of(family.name),
        precision=settings.render.precision_of(family),
        device=str(device),
        clip_axis=clip_axis,
        loras=settings.loras_of(family.name) if loras is None else loras,
    )
    model = family.load(request)
    if device.type == "cuda":
        _check_gpu(execution, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    run_as(model, execution, backend=settings.compile_backend)
    return LoadedFamily(
        family=family,
        model=model,
        load_s=time.perf_counter() - start,
        execution=execution,
        precision=request.precision,
        graphs=Graphs() if execution.compiled else None,
        recorder=loop_recorder(
            execution, settings.render.record_loops, plain=device.type == "cpu" and family.records_loops
        ),
        shared=clip_axis is not None and clip_axis.size > 1,
        rows_in_turn=settings.render.guidance_rows == IN_TURN and family.rows_in_turn,
        all_loops=settings.render.record_loops == RECORD_ON,
    )


def loop_recorder(execution: Execution, record_loops: str, *, plain: bool = False) -> LoopRecorder | None:
    """Returns what records loops; None where the execution has none. With `--record-loops off` one that records none.

    `plain`: a CPU and a family whose loops can be recorded. With `on` they are there too, which saves nothing: a replay calls
    the steps again.
    """
    if execution.records:
        # Stopped it records none, but texts get one length all the same: pixels are those of "auto".
        return LoopRecorder(stopped=record_loops == RECORD_OFF)
    return LoopRecorder(capture=lambda: run_again) if plain and record_loops == RECORD_ON else None


def _check_gpu(execution: Execution, name: str, capability: tuple[int, int]) -> None:
    """Raises Float8Error for a GPU, or a machine, that cannot compute in 8-bit floats as the execution asks."""
    if execution.linears == "float8":
        float8.check_gpu(name, capability)
    if execution.attention == "float8":
        flash3_float8.check_gpu(name, capability, installed=flash3.installed())


@torch.inference_mode()
def encode_prompts(loaded: LoadedFamily, clips: Sequence[Clip]) -> float:
    """Encodes the prompts of all clips; returns the seconds that it took.

    This is one call, because a family with a large text encoder loads the encoder for the call and frees it before the first
    clip is denoised. The family cuts the prompts into batches itself.
    """
    start = time.perf_counter()
    if clips:
        requests = {clip.key: clip_requests(clip) for clip in clips}
        prompts = iter(loaded.model.encode_prompts([request for of_clip in requests.values() for request in of_clip]))
        loaded.prompts.update({key: tuple(islice(prompts, len(of_clip))) for key, of_clip in requests.items()})
    return time.perf_counter() - start
