"""Clips without reuse, step by step, and what would have stood in at every step: for one pass of a few operations each.

Every step's input, prediction and residual are at hand when the clips are rendered once. So what a kept prediction or
residual gives in place of a step's own is known for all pairs of steps from this one render: without blocks, a pass costs
little. How far an error of a prediction moves the finished latents is measured at a few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.state import BroadcastState, RunBlock, RunStreams, Streams, Visit
from pab.broadcast.step_rules import StepRules
from pab.calibration.changes import Changes, ListeningVisit, Matrix, Sampler, Samples
from pab.calibration.groups import WHOLE_PASS, SiteGroup
from pab.family import ClipRequest
from pab.model import CombinesBranches, EncodedPrompt, RendersBatches, Scheduler, StepInput, VideoModel
from pab.parallel.mesh import NodeGroup
from pab.sampling.batch import noise_of
from pab.sampling.denoise import branch_guidance, branches, from_uncond, guide, step_guidance

ERROR_SAMPLE = 1 << 12
"""Numbers of a prediction that errors are told by."""
_SMALL = 0.05
"""Of its size, by how much a residual is changed to see what it gives."""
_TINY = 1e-30
Predict = Callable[[Tensor, int], Tensor]
"""Takes a step's input and the step, returns the guided prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddingVisit:
    """A pass without blocks, to which a residual is added."""

    step: int
    branch: str
    residual: Streams

    def begin_blocks(self, tokens: Streams) -> bool:
        """Returns that no block runs."""
        return False

    def end_blocks(self, tokens: Streams) -> Streams:
        """Returns the tokens with the residual."""
        return tuple(x + r for x, r in zip(tokens, self.residual, strict=True))

    def run_block(self, sites: Sequence[str], x: Tensor, run: RunBlock, *, own: int) -> Tensor:
        """Is never called."""
        raise TypeError("no block runs")

    def run_streams(
        self, sites: Sequence[str], run: RunStreams, *, own: Callable[[Streams], Sequence[int]]
    ) -> Streams:  # fmt: skip
        """Is never called."""
        raise TypeError("no block runs")


@dataclass(slots=True, kw_only=True)
class CapturingVisit:
    """A visit that also takes what all blocks together add."""

    visit: Visit
    residual: Streams = ()
    _before: Streams = ()

    @property
    def step(self) -> int:
        """The step."""
        return self.visit.step

    @property
    def branch(self) -> str:
        """The guidance branch."""
        return self.visit.branch

    def begin_blocks(self, tokens: Streams) -> bool:
        """Remembers the tokens."""
        self._before = tokens
        return self.visit.begin_blocks(tokens)

    def end_blocks(self, tokens: Streams) -> Streams:
        """Takes the residual."""
        self.residual = tuple(after - before for after, before in zip(tokens, self._before, strict=True))
        self._before = ()
        return self.visit.end_blocks(tokens)

    def run_block(self, sites: Sequence[str], x: Tensor, run: RunBlock, *, own: int) -> Tensor:
        """Does what the visit does."""
        return self.visit.run_block(sites, x, run, own=own)

    def run_streams(
        self, sites: Sequence[str], run: RunStreams, *, own: Callable[[Streams], Sequence[int]]
    ) -> Streams:  # fmt: skip
        """Does what the visit does."""
        return self.visit.run_streams(sites, run, own=own)


@dataclass(frozen=True, slots=True, kw_only=True)
class StandInErrors:
    """By how much stand-ins miss the predictions of clips, all clips in a row: N numbers, every clip of the same weight.

    `kept` [S, W, N]: at step t by the residual of step t - 1 - w. `whole` [S, N]: what the residual gives at all. `guided`
    [S, N]: the predictions. `gain` [S]: how far an error of size 1 at a step moves the finished latents.
    """

    kept: Matrix
    whole: Matrix
    guided: Matrix
    gain: Matrix


@dataclass(slots=True, kw_only=True)
class ReferenceClips:
    """Clips of one size that are rendered side by side without reuse, and probed. More than one need a model of batches.

    `window`: over how many steps kept residuals are compared; 0 for none, where none is wanted. `inputs`, `guided`: of every
    step, known after `render`, as are the finished `latents` [B, C, T, H, W]. `passed`: is called after every pass.
    """

    model: VideoModel
    requests: tuple[ClipRequest, ...]
    plan: BroadcastPlan
    group: NodeGroup
    window: int
    passed: Callable[[], None] = lambda: None
    inputs: list[Tensor] = field(default_factory=list)
    guided: list[Tensor] = field(default_factory=list)
    latents: Tensor = field(init=False)
    _texts: Mapping[str, object] = field(init=False)
    _prompt: EncodedPrompt = field(init=False)
    _levels: Scheduler = field(init=False)
    _sampler: Sampler = field(default_factory=lambda: Sampler(limit=ERROR_SAMPLE))

    def __post_init__(self) -> None:
        if self.group.clip.size > 1:
            raise ValueError(
                f"a clip is measured on one rank, this group has {self.group.clip.size}; start one process"
            )
        prompts, first = self.model.encode_prompts(self.requests), self.requests[0]
        self._prompt = prompts[0]
        if len(prompts) > 1:
            assert isinstance(self.model, RendersBatches), "only clips of a family with a max_batch are side by side"
            self._prompt = self.model.batch_prompts(prompts, first)
        self._levels = self._scheduler()
        self._texts = {each: self._prompt.states(each) for each in branches(first, self._prompt, self.group)}

    @torch.inference_mode()
    def render(self, groups: Sequence[SiteGroup]) -> tuple[list[Changes], Matrix, Matrix]:
        """Renders the clips. Returns the changes of each, and `kept` and `whole` of `StandInErrors` by clip [B, ...].

        Without a window `whole` is 0: nothing goes by it.
        """
        num_clips, steps = len(self.requests), self.plan.num_steps
        samples = [Samples() for _ in self.requests]
        state = BroadcastState(self.plan)
        recent: list[Mapping[str, Streams]] = []
        kept = np.zeros((num_clips, steps, self.window, self._sample_size))
        whole = np.zeros((num_clips, steps, self._sample_size))

        def predict(x: Tensor, step: int) -> Tensor:
            visits = {
                each: CapturingVisit(
                    visit=_listening_to_each(visit=state.visit(step, each), samples=samples, num_clips=num_clips)
                )
                for each in self._texts
            }
            guided = self._guided(x, step, visits)
            self.passed()
            residuals = {each: visit.residual for each, visit in visits.items()}
            for back, before in enumerate(recent):
                kept[:, step, back] = self.sampled(self._adding(x, step, before) - guided)
            if self.window:
                larger = {each: tuple(r * (1 + _SMALL) for r in streams) for each, streams in residuals.items()}
                whole[:, step] = self.sampled(self._adding(x, step, larger) - guided) / _SMALL
                recent.insert(0, residuals)
                del recent[self.window :]
            for sample, prediction in zip(samples, guided.split(1), strict=True):
                sample.take(WHOLE_PASS.names[0], "guided", (prediction,))
            self.inputs.append(x)
            self.guided.append(guided)
            return guided

        self.latents = self.run(predict)
        return [each.changes([*groups, WHOLE_PASS]) for each in samples], kept, whole

    @property
    def _sample_size(self) -> int:
        return min(ERROR_SAMPLE, int(np.prod(self.model.latent_shape(self.requests[0]))))

    def sampled(self, x: Tensor) -> Matrix:
        """Returns the same numbers [B, n] of each clip."""
        return torch.stack([self._sampler(clip) for clip in x.split(1)]).cpu().numpy()

    @torch.inference_mode()
    def run(self, predict: Predict) -> Tensor:
        """Returns the latents after all steps."""
        scheduler = self._scheduler()
        noise = noise_of(self.requests, self.model.latent_shape(self.requests[0]))
        latents = noise.to(self.group.device) * scheduler.init_noise_sigma
        for step in range(self.plan.num_steps):
            x = scheduler.model_input(latents, step)
            latents = scheduler.advance(latents, x, predict(x, step), step)
        return latents

    def _scheduler(self) -> Scheduler:
        if len(self.requests) > 1:
            assert isinstance(self.model, RendersBatches), "checked when the prompts were encoded"
            return self.model.batch_scheduler(self.requests, self.group.sp)
        return self.model.scheduler(self.requests[0], self.group.sp)

    def gain_at(self, step: int) -> Matrix:
        """Returns [B]: how far the finished latents move for an error of size 1 of the prediction: of the last one's kind."""

        def predict(x: Tensor, at: int) -> Tensor:
            if at <= step:
                return self.guided[at - (at == step)]
            state = BroadcastState(self.plan)
            guided = self._guided(x, at, {each: state.visit(at, each) for each in self._texts})
            self.passed()
            return guided

        moved = (self.run(predict) - self.latents).flatten(1).norm(dim=1)
        missed = (self.guided[step - 1] - self.guided[step]).flatten(1).norm(dim=1)
        return (moved / missed.clamp(min=_TINY)).double().cpu().numpy()

    @torch.inference_mode()
    def site_error(self, site_group: SiteGroup, step: int) -> Matrix:
        """Returns [B, n]: by how much the prediction is missed if one group reuses its outputs of the step before."""
        steps = self.plan.num_steps
        rules = StepRules(
            num_steps=steps, groups=(site_group.computing_at([each for each in range(steps) if each != step]),)
        )
        state = BroadcastState(make_plan(rules, self.plan.timesteps, self.plan.sites))
        guided = self.guided[step]
        for at in (step - 1, step):
            guided = self._guided(self.inputs[at], at, {each: state.visit(at, each) for each in self._texts})
            self.passed()
        return self.sampled(guided - self.guided[step])

    def _adding(self, x: Tensor, step: int, residuals: Mapping[str, Streams]) -> Tensor:
        return self._guided(
            x, step, {each: AddingVisit(step=step, branch=each, residual=residuals[each]) for each in self._texts}
        )

    def _guided(self, x: Tensor, step: int, visits: Mapping[str, Visit]) -> Tensor:
        request, scheduler = self.requests[0], self._levels
        step_input = StepInput(
            request=request,
            step=step,
            timestep=self.plan.timesteps[step],
            active_frames=scheduler.active_frames(step),
        )
        outputs = [
            self.model.predict(x, step_input, text, visits[branch], self.group) for branch, text in self._texts.items()
        ]
        scale = branch_guidance(request, self._prompt)
        combine = scheduler.combine if isinstance(scheduler, CombinesBranches) else from_uncond
        scales = step_guidance(scheduler, scale, self.plan.num_steps)
        return guide(outputs, scale if scale == 1.0 else scales[step], self.group, combine)


def _listening_to_each(*, visit: Visit, samples: Sequence[Samples], num_clips: int) -> Visit:
    def take(site: str, branch: str, streams: Sequence[Tensor]) -> None:
        # Of several clips, rows lie as [conditional of all, unconditional of all]; each clip has its own samples.
        for clip, sample in enumerate(samples):
            sample.take(site, branch, [stream[clip::num_clips] for stream in streams])

    return ListeningVisit(visit=visit, take=samples[0].take if num_clips == 1 else take)


def joined_errors(
    kept: Matrix, whole: Matrix, guided: Matrix, gains: Mapping[int, Matrix]
) -> StandInErrors:  # fmt: skip
    """Joins what was measured of clips: `kept` [B, S, W, n], `whole`, `guided` [B, S, n], `gains` [B] at some steps.

    Between these steps gains go along geometric lines. Every clip is measured by how far its prediction changes from step to
    step.
    """
    changed = np.sqrt(np.square(np.diff(guided, axis=1)).sum(axis=(1, 2)))
    weight = 1 / np.maximum(changed, _TINY)
    steps = sorted(gains)
    logs = [float(np.log(np.maximum(gains[step], _TINY)).mean()) for step in steps]
    gain = np.exp(np.interp(np.arange(guided.shape[1]), steps, logs))

    def flat(x: Matrix) -> Matrix:
        return np.concatenate(list(x * weight.reshape(-1, *[1] * (x.ndim - 1))), axis=-1)

    return StandInErrors(kept=flat(kept), whole=flat(whole), guided=flat(guided), gain=gain)
