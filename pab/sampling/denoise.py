"""The one denoising loop: noise to latents, with a broadcast plan, on one rank or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from pab.broadcast.foresight import ForesightRules
from pab.broadcast.foresight_state import ForesightState
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import Rules
from pab.broadcast.state import COND, UNCOND, BroadcastState, ClipState
from pab.family import ClipRequest, Family
from pab.model import (
    Beginning,
    BringsText,
    CombinesBranches,
    EncodedPrompt,
    GuidesByStep,
    NotFiniteError,
    Recordable,
    Scheduler,
    StepInput,
    VideoModel,
)
from pab.parallel.exchange import Traffic, Waiting
from pab.parallel.mesh import NodeGroup
from pab.parallel.turns import in_turn
from pab.sampling.collector import collector_held
from pab.sampling.device_clock import DeviceClock
from pab.sampling.recorded_loop import LoopRecorder, RunStep, Texts, shapes_of
from pab.sampling.recorded_sizes import can_be_recorded, gains_by_recording, row_tokens

Combine = Callable[[Tensor, Tensor, float], Tensor]


def not_finite_text(count: int, latents: Tensor) -> str:
    """Returns what a NotFiniteError says of latents."""
    return f"{count} of {latents.numel()} latent values are NaN or infinite after denoising"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How a loop is run. `cache_dtype`: how kept outputs are stored, "full" or "int8" (`pab.kernels.kept_int8`).

    `recorder`: records and replays the loop, on all ranks that share the clip or on none. It needs a clip for which
    `records_loop` is true and a model that is a `pab.model.Recordable`. With one, also one that is stopped, texts are filled
    up to one length. `row_tokens`: of the clip on this rank (`pab.sampling.recorded_sizes`), by which the recorder knows how
    much memory a recording holds. `rows_in_turn`: on ranks that share a pass and have both rows of guidance, each row is a
    pass of its own, and one computes while the other one exchanges. It needs a model whose family has `rows_in_turn`.
    """

    cache_dtype: str = "full"
    recorder: LoopRecorder | None = None
    row_tokens: int = 0
    rows_in_turn: bool = False


PLAIN_LOOP = LoopSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoised:
    """What the loop leaves: whole latents [B, C, T, H, W] float32, and what was measured and counted on this rank."""

    latents: Tensor
    not_finite: tuple[int, ...]
    """Per clip, how many of its latent values are NaN or infinite."""
    plan: BroadcastPlan
    """What was computed and reused: the given plan, or what Foresight decided during the loop."""
    step_seconds: tuple[float, ...]
    computed: Mapping[str, int]
    """Site calls computed, by kind, over all passes of this rank."""
    passes: int
    """Passes of the model that this rank made in each step."""
    reused: Mapping[str, int]
    traffic: Traffic
    waiting: Waiting
    """Seconds of exchanges: those of a pass, and of the rows of guidance."""
    kept_bytes_peak: int
    clock: DeviceClock
    """One mark before the first step, one between steps, one after the last."""
    same_length: bool
    """Whether texts were filled up to one length."""
    rows_in_turn: bool
    """Whether the two rows of guidance were passes of their own, run in turn."""


@torch.inference_mode()
@collector_held()
def denoise(
    model: VideoModel,
    request: ClipRequest,
    *,
    prompt: EncodedPrompt,
    noise: Tensor,
    plan: BroadcastPlan,
    group: NodeGroup,
    given: Beginning | None = None,
    loop: LoopSettings = PLAIN_LOOP,
) -> Denoised:
    """Renders the latents of one clip or of a batch (`batch.py`). Collective over the clips' ranks.

    `noise`: the whole [B, C, T, H, W] on the CPU. `given`: the frames that references give, or what a batch begins from.
    Nothing in the loop waits for the device, except Foresight: once before each step that may reuse. Raises NotFiniteError
    when no clip's result is finite (after the loop, on every rank).
    """
    scheduler = model.scheduler(request, group.sp) if given is None else given.scheduler(group.sp)
    prompt = prompt_with(given, prompt)
    assert len(scheduler.timesteps) == plan.num_steps, "the plan was made from other timesteps"
    exchanges = group.sp.axis.exchanges
    texts, state = _texts(model, request, prompt, group, loop), _state(plan, group, loop)
    guidance_scale = branch_guidance(request, prompt)
    scales = step_guidance(scheduler, guidance_scale, plan.num_steps)
    image_states = None if given is None else given.image_states
    combine = scheduler.combine if isinstance(scheduler, CombinesBranches) else from_uncond
    prediction: Tensor | None = None

    def run_step(latents: Tensor, step: int, texts: Texts) -> Tensor:
        """Returns the latents after a step: one pass per branch of this rank, guidance, the scheduler's update."""
        nonlocal prediction
        state.begin(step)
        model_input = scheduler.model_input(latents, step)
        if step in plan.skipped:
            state.skip(tuple(texts))  # the last prediction is reused
        else:
            active, timestep = scheduler.active_frames(step), plan.timesteps[step]
            step_input = StepInput(
                request=request, step=step, timestep=timestep, active_frames=active, image_states=image_states
            )
            passes = [
                partial(model.predict, model_input, step_input, text, state.visit(step, branch), group)
                for branch, text in texts.items()
            ]
            outputs = in_turn(passes, exchanges, group.device) if loop.rows_in_turn else [run() for run in passes]
            prediction = guide(outputs, guidance_scale if guidance_scale == 1.0 else scales[step], group, combine)
        assert prediction is not None, "a plan never leaves out the first pass"
        state.kept_bytes_peak = max(state.kept_bytes_peak, state.kept_bytes)
        return scheduler.advance(latents, model_input, prediction, step)

    run: RunStep = run_step
    if loop.recorder is not None:
        kind = _kind(request, plan, guidance_scale, loop, texts)
        axes = [axis.exchanges for axis in (group.sp.axis, group.cfg) if axis.size > 1]
        run = loop.recorder.wrap(
            run_step, kind=kind, num_steps=plan.num_steps, state=state, axes=axes, row_tokens=loop.row_tokens
        )
    clock, before = DeviceClock(group.device), exchanges.snapshot()
    _begin_timing(group)
    latents = noise.to(group.device) * scheduler.init_noise_sigma
    latents = model.split(latents if given is None else given.put_into(latents), group.sp)
    clock.mark()
    for step in range(plan.num_steps):
        latents = run(latents, step, texts)
        clock.mark()
    assert not state.kept, f"outputs outlived their last use: {sorted(state.kept)}"
    latents = model.gather(latents, request, group.sp)
    not_finite = _not_finite(latents)  # waits for the device
    return Denoised(
        latents=latents,
        not_finite=not_finite,
        plan=state.decided,
        step_seconds=tuple(clock.seconds()),
        passes=len(texts),
        computed=dict(state.computed),
        reused=dict(state.reused),
        traffic=exchanges.since(before),
        waiting=_end_timing(group),
        kept_bytes_peak=state.kept_bytes_peak,
        clock=clock,
        same_length=loop.recorder is not None,
        rows_in_turn=loop.rows_in_turn and len(texts) > 1,
    )


def plan_for(family: Family, request: ClipRequest, rules: Rules, precision: str) -> BroadcastPlan:
    """Returns `family.plan` of a clip."""
    return family.plan(request, rules, precision)


def initial_noise(request: ClipRequest, shape: Sequence[int]) -> Tensor:
    """Draws the noise [1, *shape] of the whole latents on the CPU from the clip's seed: the same on any number of ranks."""
    generator = torch.Generator().manual_seed(request.seed)
    return torch.randn(1, *shape, generator=generator)


def prompt_with(given: Beginning | None, prompt: EncodedPrompt) -> EncodedPrompt:
    """Returns the text of a clip that begins from `given`, with states of its own where the encoder has seen the image."""
    states = given.own_states if isinstance(given, BringsText) else None
    return prompt if states is None else replace(prompt, states=states)


def branch_guidance(request: ClipRequest, prompt: EncodedPrompt) -> float:
    """Returns the scale between the two branches. It is 1.0 (one branch) where the model gets the scale as an input."""
    return 1.0 if prompt.guided_passes == (COND,) else request.guidance_scale


def step_guidance(scheduler: Scheduler, guidance_scale: float, num_steps: int) -> tuple[float, ...]:
    """Returns the scale between the two branches at every step. A clip of one branch has one at all of them."""
    by_step = scheduler.guidance if isinstance(scheduler, GuidesByStep) else ()
    return by_step or (guidance_scale,) * num_steps


def branches(
    request: ClipRequest, prompt: EncodedPrompt, group: NodeGroup, *, rows_in_turn: bool = False
) -> tuple[str, ...]:
    """Returns the guidance branches that this rank runs in a step, one pass for each."""
    if branch_guidance(request, prompt) == 1.0:
        return (COND,)
    if group.cfg.size == 1:
        return (COND, UNCOND) if rows_in_turn and group.sp.size > 1 else prompt.guided_passes
    return (COND,) if group.cfg.rank == 0 else (UNCOND,)


def from_uncond(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """Returns uncond + scale * (cond - uncond)."""
    return uncond + guidance_scale * (cond - uncond)


def guide(
    outputs: Sequence[Tensor], guidance_scale: float, group: NodeGroup, combine: Combine = from_uncond
) -> Tensor:  # fmt: skip
    """Combines the branches' predictions, on every rank."""
    if guidance_scale == 1.0:
        return outputs[0]
    if group.cfg.size > 1:
        outputs = group.cfg.all_gather(outputs[0])
    cond, uncond = outputs if len(outputs) == 2 else outputs[0].chunk(2)
    return combine(cond, uncond, guidance_scale)


def _texts(
    model: VideoModel, request: ClipRequest, prompt: EncodedPrompt, group: NodeGroup, loop: LoopSettings
) -> Texts:  # fmt: skip
    mine = branches(request, prompt, group, rows_in_turn=loop.rows_in_turn)
    texts = {branch: prompt.states(branch) for branch in mine}
    if loop.recorder is None:
        return texts
    return {branch: cast(Recordable, model).same_length(text) for branch, text in texts.items()}


def _state(plan: BroadcastPlan, group: NodeGroup, loop: LoopSettings) -> ClipState:
    if isinstance(plan.rules, ForesightRules):
        return ForesightState(plan=plan, rules=plan.rules, group=group)
    return BroadcastState(plan, loop.cache_dtype)


def _kind(
    request: ClipRequest, plan: BroadcastPlan, guidance_scale: float, loop: LoopSettings, texts: Texts
) -> tuple[object, ...]:
    """Returns what a recording fixes: the clip without its prompts and seed, its plan, the shapes of its texts."""
    alike = replace(request, prompt="", negative_prompt=None, seed=0)
    return alike, plan.digest, guidance_scale, loop.cache_dtype, *texts, *shapes_of(texts)


def _begin_timing(group: NodeGroup) -> None:
    for axis in (group.sp.axis, group.cfg):
        axis.exchanges.begin_timing()


def _end_timing(group: NodeGroup) -> Waiting:
    return group.sp.axis.exchanges.end_timing().plus(group.cfg.exchanges.end_timing())


def _not_finite(latents: Tensor) -> tuple[int, ...]:
    counts = tuple((~latents.isfinite()).flatten(1).sum(dim=1).tolist())
    if all(counts):
        raise NotFiniteError(not_finite_text(sum(counts), latents))
    return counts


def records_loop(
    request: ClipRequest,
    family: Family,
    plan: BroadcastPlan,
    group: NodeGroup,
    *,
    clips: int = 1,
    rows_in_turn: bool = False,
    all_loops: bool = False,
) -> bool:
    """Whether a loop is recorded: it can be if it is planned before the first step, and those that gain by it are.

    `rows_in_turn`: that of the loop's settings; no GPU has recorded such loops. `all_loops`: these and clips of any size too.
    """
    if all_loops:
        return can_be_recorded(plan.rules)
    if rows_in_turn:
        return False
    axes = {"cfg": group.cfg.size, "sp": group.sp.size}
    return gains_by_recording(family, request, plan.rules, clips=clips, **axes)


def loop_settings(
    request: ClipRequest,
    family: Family,
    plan: BroadcastPlan,
    group: NodeGroup,
    recorder: LoopRecorder | None,
    *,
    clips: int = 1,
    rows_in_turn: bool = False,
    all_loops: bool = False,
) -> LoopSettings:
    """Returns the settings of a loop that begins from noise and keeps outputs whole.

    `recorder` is in them if `records_loop`, which has the same arguments, is true.
    """
    records = records_loop(request, family, plan, group, clips=clips, rows_in_turn=rows_in_turn, all_loops=all_loops)
    return LoopSettings(
        recorder=recorder if records else None,
        row_tokens=row_tokens(family, request, clips=clips, cfg=group.cfg.size, sp=group.sp.size),
        rows_in_turn=rows_in_turn,
    )
