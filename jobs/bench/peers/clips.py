"""Renders clips by our loop and by the peers' pipeline: one loaded model, so the same weights, text, noise and sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from jobs.bench.library_subjects import plain_transformer
from jobs.bench.peers.chosen import OURS
from jobs.bench.peers.methods import Over, Setting
from jobs.bench.peers.operations import ModuleCounter, OperationCounter
from jobs.quality.alike import Frames
from pab.broadcast.rules import NO_BROADCAST, Rules
from pab.broadcast.state import BOTH, COND, UNCOND
from pab.family import ClipRequest, Family
from pab.library.video import DiffusersVideo
from pab.model import EncodedPrompt, RendersBatches, StepInput, VideoModel
from pab.parallel.mesh import NodeGroup, SequenceParallel
from pab.sampling.batch import denoise_batch, noise_of
from pab.sampling.denoise import denoise, from_uncond, plan_for

Run = Callable[[Sequence[ClipRequest]], Tensor]
"""Renders clips of one kind in one batch, and returns their latents [N, C, T, H, W]."""
ENOUGH_S, MOST_RUNS = 1.0, 9
"""Of timing a batch."""


@dataclass(slots=True, kw_only=True)
class Clips:
    """A loaded model and how its clips are rendered.

    `ratios`: MagCache's, once they are known. `counter`: of a model of the library, once it is watched.
    """

    family: Family
    model: VideoModel
    precision: str
    device: torch.device
    ratios: Sequence[float] = ()
    counter: ModuleCounter | None = None
    texts: dict[str, EncodedPrompt] = field(default_factory=dict)

    @property
    def has_peers(self) -> bool:
        """Whether peers know the transformer's class: it is one of the library's."""
        return isinstance(self.model, DiffusersVideo)

    @property
    def num_blocks(self) -> int:
        """Blocks of the transformer."""
        return sum(len(stack) for stack in self.model.block_stacks)

    def watch(self, request: ClipRequest) -> None:
        """Watches what the model computes from now on, and weighs it by one clip; of a model of the library."""
        transformer = cast(Any, self.model).denoise.experts[0]
        self.counter = ModuleCounter()
        self.counter.watch(transformer)
        self.counter.weigh(transformer, lambda: self.ours(NO_BROADCAST)([request]))

    def prompts(self, requests: Sequence[ClipRequest]) -> list[EncodedPrompt]:
        """Returns the text of clips, each encoded once."""
        for request in requests:
            if request.prompt not in self.texts:
                self.texts[request.prompt] = self.model.encode_prompts([request])[0]
        return [self.texts[request.prompt] for request in requests]

    def decoded(self, latents: Tensor, requests: Sequence[ClipRequest]) -> list[Frames]:
        """Returns each clip's frames [T, H, W, 3], uint8."""
        group = NodeGroup(device=self.device)
        return [
            self.model.decode(latents[row : row + 1], request, group).fetch()[0].numpy()
            for row, request in enumerate(requests)
        ]

    def ours(self, rules: Rules) -> Run:
        """Returns what renders by our loop."""

        def run(requests: Sequence[ClipRequest]) -> Tensor:
            prompts, group = self.prompts(requests), NodeGroup(device=self.device)
            noise = noise_of(requests, self.model.latent_shape(requests[0]))
            plan = plan_for(self.family, requests[0], rules, self.precision)
            if isinstance(self.model, RendersBatches):
                done = denoise_batch(self.model, requests, prompts=prompts, noise=noise, plan=plan, group=group)
            else:
                done = denoise(
                    self.model, requests[0], prompt=joined(prompts), noise=noise, plan=plan, group=group
                )  # fmt: skip
            return done.latents

        return run

    def under(self, setting: Setting) -> Run:
        """Returns what renders as a setting says."""
        if setting.rules is not None:
            return self.ours(setting.rules)
        return self.pipeline(setting.put, one_pass=setting.one_pass)

    def without_reuse(self, setting: Setting) -> Run:
        """Returns what renders in the same way with everything computed."""
        return self.ours(NO_BROADCAST) if setting.side == OURS else self.pipeline(None, one_pass=setting.one_pass)

    def counted(self, run: Run, requests: Sequence[ClipRequest]) -> tuple[Tensor, float]:
        """Renders a batch; returns its latents, and the operations that it took."""
        if self.counter is None:
            with OperationCounter() as counter:
                return run(requests), counter.operations
        self.counter.clear()
        return run(requests), self.counter.operations

    def pipeline(self, put: Callable[[Over], None] | None, *, one_pass: bool = False) -> Run:
        """Returns what renders with the library's own transformer, with what `put` puts over it.

        The loop does what the library's pipeline does: a pass for each branch, each in a cache context of its own.
        """
        from diffusers.utils import logging

        logging.set_verbosity_error()
        assert isinstance(self.model, DiffusersVideo), "peers are put over transformers of the library"
        transformer = plain_transformer(self.model, self.device)
        if self.counter is not None:
            self.counter.watch(transformer)
        loop = _Loop(clips=self, transformer=transformer, one_pass=one_pass)
        pipe = _pipeline(loop)
        is_put = False

        def run(requests: Sequence[ClipRequest]) -> Tensor:
            nonlocal is_put
            if put is not None and not is_put:
                num_steps = requests[0].num_steps
                put(Over(pipe=pipe, num_steps=num_steps, timestep=lambda: loop.timestep, ratios=self.ratios))
                is_put = True
            return pipe(requests)

        return run


def _pipeline(loop: _Loop) -> Any:
    """Returns a pipeline of the library that runs a loop, of a class of its own: cache-dit changes the class."""
    from diffusers import WanPipeline

    def call(_pipe: Any, requests: Sequence[ClipRequest]) -> Tensor:
        return loop.run(requests)

    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": None, "transformer": loop.transformer}
    return type(WanPipeline.__name__, (WanPipeline,), {"__call__": call, "__module__": WanPipeline.__module__})(**parts)


@dataclass(slots=True, kw_only=True)
class _Loop:
    """A denoising loop over a plain transformer. `one_pass`: both rows in one pass, the unconditional one first."""

    clips: Clips
    transformer: Any
    one_pass: bool
    timestep: float = 0.0

    def run(self, requests: Sequence[ClipRequest]) -> Tensor:
        """Renders clips."""
        clips, first = self.clips, requests[0]
        model, prompt = clips.model, joined(clips.prompts(requests))
        passes = self._passes(prompt)
        scheduler: Any = model.scheduler(first, SequenceParallel())
        denoise_rows = replace(cast(Any, model).denoise, experts=(self.transformer,))
        latents = noise_of(requests, model.latent_shape(first)).to(clips.device) * scheduler.init_noise_sigma
        for step, self.timestep in enumerate(scheduler.timesteps):
            given = scheduler.model_input(latents, step)
            step_input = StepInput(request=first, step=step, timestep=self.timestep, active_frames=None)
            sigma = float(scheduler.scheduler.sigmas[step])
            predicted: list[Tensor] = []
            for name, text in passes:
                rows = torch.cat([given, given]) if self.one_pass else given
                with self.transformer.cache_context(
                    name, step_index=step, sigma=sigma, num_inference_steps=len(scheduler.timesteps)
                ):
                    predicted.append(denoise_rows(rows, step_input, text))
            cond, uncond = reversed(predicted[0].chunk(2)) if self.one_pass else predicted
            latents = scheduler.advance(latents, given, from_uncond(cond, uncond, first.guidance_scale), step)
        self.transformer._reset_stateful_cache()
        return latents

    def _passes(self, prompt: EncodedPrompt) -> list[tuple[str, Tensor]]:
        cond, uncond = (cast(Tensor, prompt.states(branch)) for branch in (COND, UNCOND))
        return [("both", torch.cat([uncond, cond]))] if self.one_pass else [(COND, cond), (UNCOND, uncond)]


def joined(prompts: Sequence[EncodedPrompt]) -> EncodedPrompt:
    """Returns the text of clips as that of a batch: for both branches all conditional rows first."""

    def states(branch: str) -> Tensor:
        if branch == BOTH:
            return torch.cat([states(COND), states(UNCOND)])
        return torch.cat([cast(Tensor, prompt.states(branch)) for prompt in prompts])

    return replace(prompts[0], states=states)


def fullest_batch(
    run: Run, requests: Sequence[ClipRequest], device: torch.device, *, enough_s: float = ENOUGH_S
) -> int:
    """Returns how many clips fill the device: doubled as long as a clip takes 5 % less time, up to all of them."""
    best, fastest, size = 1, float("inf"), 1
    while size <= len(requests):
        try:
            seconds = timed(run, requests[:size], device, enough_s=enough_s) / size
        except torch.OutOfMemoryError:
            break
        if seconds > 0.95 * fastest:
            break
        best, fastest, size = size, seconds, 2 * size
    return best


def timed(run: Run, requests: Sequence[ClipRequest], device: torch.device, *, enough_s: float = ENOUGH_S) -> float:
    """Returns the seconds of a batch from its text to its latents: the median of runs, after one that is left out.

    Runs go on for `enough_s` seconds; at least one counts, and at most nine do.
    """
    run(requests)
    _wait(device)
    taken: list[float] = []
    while not taken or (sum(taken) < enough_s and len(taken) < MOST_RUNS):
        began = time.perf_counter()
        run(requests)
        _wait(device)
        taken.append(time.perf_counter() - began)
    return median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
