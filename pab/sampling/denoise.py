"""The one denoising loop: noise to latents, with a broadcast plan, on one rank or many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from pab.broadcast.foresight import ForesightRules
from pab.broadcast.foresight_state import ForesightState
from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.rules import Rules
from pab.broadcast.state import COND, UNCOND, BroadcastState, ClipState
from pab.family import ClipRequest, Family
from pab.model import Beginning, EncodedPrompt, Recordable, Scheduler, StepInput, VideoModel
from pab.parallel.mesh import NodeGroup, Traffic
from pab.sampling.device_clock import DeviceClock
from pab.sampling.recorded_loop import MAX_TOKENS, LoopCounts, LoopRecorder, run_steps, shapes_of


class NotFiniteError(ArithmeticError):
    """The latents hold NaN or infinity after denoising; the message says how many values."""


def not_finite_text(count: int, latents: Tensor) -> str:
    """Returns what a NotFiniteError says."""
    return f"{count} of {latents.numel()} latent values are NaN or infinite after denoising"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How a loop is run. `keep`: how outputs wait to be reused, "full" or "int8" (`pab.kernels.kept_int8`).

    `recorder`: records and replays the loop, of a clip of which `records_loop` is true and a model that is a
    `pab.model.Recordable`.
    """

    keep: str = "full"
    recorder: LoopRecorder | None = None


PLAIN_LOOP = LoopSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoised:
    """What the loop leaves: whole latents [B, C, T, H, W] float32, and what was measured and counted on this rank."""

    latents: Tensor
    not_finite: tuple[int, ...]
    """Per clip, how many of its latent values are NaN or infinite."""
    plan: BroadcastPlan
    """What was computed and reused: the plan that was given, or what Foresight decided under way."""
    step_seconds: tuple[float, ...]
    computed: dict[str, int]
    """Site calls computed, by kind, over all passes of this rank."""
    passes: int
    """Passes of the model that this rank made in each step."""
    reused: dict[str, int]
    traffic: Traffic
    kept_bytes_peak: int
    clock: DeviceClock
    """The marks between steps, and before the first and after the last."""


def plan_for(family: Family, request: ClipRequest, rules: Rules, precision: str) -> BroadcastPlan:
    """Returns the plan of one clip: what every rank computes alike, and what `--dry-run` prints.

    Under Foresight's rules it computes everything; the loop decides.
    """
    return make_plan(
        rules,
        family.timesteps(request, precision),
        family.sites,
        fresh_steps=family.fresh_steps(request, precision),
    )


def initial_noise(request: ClipRequest, shape: Sequence[int]) -> Tensor:
    """Draws the whole latent's noise [1, *shape] on the CPU from the clip's own seed, the same on any number of ranks."""
    generator = torch.Generator().manual_seed(request.seed)
    return torch.randn(1, *shape, generator=generator)


def branch_guidance(request: ClipRequest, prompt: EncodedPrompt) -> float:
    """Returns the scale that drives the two branches apart: 1.0, which needs but one, where the model is told the scale."""
    return 1.0 if prompt.guided_passes == (COND,) else request.guidance_scale


def branches(request: ClipRequest, prompt: EncodedPrompt, group: NodeGroup) -> tuple[str, ...]:
    """Returns the guidance branches this rank runs in a step, a pass for each."""
    if branch_guidance(request, prompt) == 1.0:
        return (COND,)
    if group.cfg.size == 1:
        return prompt.guided_passes
    return (COND,) if group.cfg.rank == 0 else (UNCOND,)


def guide(outputs: Sequence[Tensor], guidance_scale: float, group: NodeGroup) -> Tensor:
    """Joins this rank's predictions to the guided one: uncond + scale * (cond - uncond), on every rank."""
    if guidance_scale == 1.0:
        return outputs[0]
    if group.cfg.size > 1:
        outputs = group.cfg.all_gather(outputs[0])
    cond, uncond = outputs if len(outputs) == 2 else outputs[0].chunk(2)
    return uncond + guidance_scale * (cond - uncond)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSteps:
    """The work of one clip's loop, step by step, and what it keeps between steps."""

    model: VideoModel
    request: ClipRequest
    scheduler: Scheduler
    plan: BroadcastPlan
    group: NodeGroup
    texts: Mapping[str, object]
    state: ClipState
    guidance_scale: float
    keep: str
    peak: list[int] = field(default_factory=lambda: [0])
    """The most memory that kept outputs have held so far."""
    last: list[Tensor] = field(default_factory=list)
    """The last guided prediction."""

    @property
    def num_steps(self) -> int:
        """Steps of the loop."""
        return self.plan.num_steps

    @property
    def kind(self) -> tuple[object, ...]:
        """All but noise and texts: the clip without its prompts and seed, its plan, the shapes of its texts."""
        alike = replace(self.request, prompt="", negative_prompt=None, seed=0)
        return alike, self.plan.digest, self.guidance_scale, self.keep, *self.texts, *shapes_of(self.texts)

    @property
    def counts(self) -> LoopCounts:
        """What the steps that ran have computed and kept."""
        return LoopCounts(
            computed=Counter(self.state.computed), reused=Counter(self.state.reused), kept_bytes_peak=self.peak[0]
        )

    def with_texts(self, texts: Mapping[str, object]) -> LoopSteps:
        """Returns the same work over other texts, with nothing kept yet."""
        return replace(self, texts=texts, state=_state(self.plan, self.group, self.keep), peak=[0], last=[])

    def run(self, latents: Tensor, step: int) -> Tensor:
        """Returns the latents after a step: a pass for every branch of this rank, guidance, the scheduler's update."""
        self.state.begin(step)
        model_input = self.scheduler.model_input(latents, step)
        step_input = StepInput(
            request=self.request,
            step=step,
            timestep=self.plan.timesteps[step],
            active_frames=self.scheduler.active_frames(step),
        )
        if step in self.plan.skipped:
            self.state.skip(tuple(self.texts))  # the last prediction stands in
        else:
            outputs = [
                self.model.predict(model_input, step_input, text, self.state.visit(step, branch), self.group)
                for branch, text in self.texts.items()
            ]
            self.last[:] = [guide(outputs, self.guidance_scale, self.group)]
        self.peak[0] = max(self.peak[0], self.state.kept_bytes)
        return self.scheduler.advance(latents, model_input, self.last[0], step)


def _not_finite(latents: Tensor) -> tuple[int, ...]:
    counts = tuple((~latents.isfinite()).flatten(1).sum(dim=1).tolist())
    if all(counts):
        raise NotFiniteError(not_finite_text(sum(counts), latents))
    return counts


def _state(plan: BroadcastPlan, group: NodeGroup, keep: str) -> ClipState:
    if isinstance(plan.rules, ForesightRules):
        return ForesightState(plan=plan, rules=plan.rules, group=group)
    return BroadcastState(plan, keep)


@torch.inference_mode()
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
    """Renders one clip's latents, or those of a batch: clips that differ in prompt and seed alone (`batch.py`). Collective.

    `noise`: whole [B, C, T, H, W] on the CPU. `given`: frames that references give, or what several clips begin from. Nothing
    in the loop waits for the device, but for Foresight's one decision before a step that may reuse. Raises NotFiniteError
    when no clip's result is finite (after the loop, on every rank).
    """
    scheduler = model.scheduler(request, group.sp) if given is None else given.scheduler(group.sp)
    assert len(scheduler.timesteps) == plan.num_steps, "the plan was made from other timesteps"
    mine = branches(request, prompt, group)
    texts = {branch: prompt.states(branch) for branch in mine}
    if loop.recorder is not None:
        assert group.clip.size == 1, "ranks that share a clip are not recorded"
        texts = {branch: cast(Recordable, model).same_length(text) for branch, text in texts.items()}
    work = LoopSteps(
        model=model,
        request=request,
        scheduler=scheduler,
        plan=plan,
        group=group,
        texts=texts,
        state=_state(plan, group, loop.keep),
        guidance_scale=branch_guidance(request, prompt),
        keep=loop.keep,
    )
    before = group.sp.axis.traffic.snapshot()
    clock = DeviceClock(group.device)
    latents = noise.to(group.device) * scheduler.init_noise_sigma
    latents = model.split(latents if given is None else given.put_into(latents), group.sp)
    clock.mark()
    latents, counts = (run_steps if loop.recorder is None else loop.recorder.run)(work, latents, clock)
    assert not work.state.kept, f"outputs outlived their last use: {sorted(work.state.kept)}"
    latents = model.gather(latents, request, group.sp)
    return Denoised(
        latents=latents,
        not_finite=_not_finite(latents),
        plan=work.state.decided,
        step_seconds=tuple(clock.seconds()),
        passes=len(mine),
        computed=dict(counts.computed),
        reused=dict(counts.reused),
        traffic=group.sp.axis.traffic.since(before),
        kept_bytes_peak=counts.kept_bytes_peak,
        clock=clock,
    )


def records_loop(
    request: ClipRequest, family: Family, plan: BroadcastPlan, group: NodeGroup, *, clips: int = 1
) -> bool:
    """Whether the loop of clips is worth recording, and can be: small, on one rank, decided before its first step."""
    small = clips * family.num_tokens(request.num_frames, request.height, request.width) <= MAX_TOKENS
    return small and group.clip.size == 1 and not isinstance(plan.rules, ForesightRules)
