"""A batch: several clips in one denoising loop, a row for each, with its own noise and its own text, under one plan.

Rows never mix. A clip in a batch differs from the same clip alone only by rounding: kernels choose the order in which they
sum by the size of their input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pab.broadcast.plan import BroadcastPlan
from pab.family import ClipRequest
from pab.model import EncodedPrompt, NotFiniteError, RendersBatches, Scheduler, VideoModel
from pab.parallel.exchange import Traffic, Waiting
from pab.parallel.mesh import NodeGroup, SequenceParallel
from pab.sampling.denoise import (
    PLAIN_LOOP,
    Denoised,
    LoopSettings,
    denoise,
    initial_noise,
    not_finite_text,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SideBySide:
    scheduler: Callable[[SequenceParallel], Scheduler]
    image_states: Tensor | None = None

    def put_into(self, noise_BCTHW: Tensor) -> Tensor:
        return noise_BCTHW


def own_choices(request: ClipRequest) -> ClipRequest:
    """Returns the request without its prompts and seed, in which the clips of a batch may differ."""
    return replace(request, prompt="", negative_prompt=None, seed=0)


def noise_of(requests: Sequence[ClipRequest], shape: Sequence[int]) -> Tensor:
    """Returns the initial noise [N, *shape] of several clips: each is drawn from its own seed, as for a clip alone."""
    return torch.cat([initial_noise(request, shape) for request in requests])


def denoise_batch(
    model: VideoModel,
    requests: Sequence[ClipRequest],
    *,
    prompts: Sequence[EncodedPrompt],
    noise: Tensor,
    plan: BroadcastPlan,
    group: NodeGroup,
    loop: LoopSettings = PLAIN_LOOP,
) -> Denoised:
    """Renders latents [N, C, T, H, W] of N clips that differ only in prompts and seed. Collective over the clips' ranks.

    `noise`: what `noise_of` returns. Raises NotFiniteError when no clip's result is finite.
    """
    assert isinstance(model, RendersBatches), "only clips of a family with a max_batch are rendered together"
    assert len({own_choices(request) for request in requests}) == 1, (
        "clips rendered together differ in more than prompts"
    )
    return denoise(
        model,
        requests[0],
        prompt=model.batch_prompts(prompts, requests[0]),
        noise=noise,
        plan=plan,
        group=group,
        loop=loop,
        given=_SideBySide(scheduler=lambda sp: model.batch_scheduler(requests, sp)),
    )


def unbatch(denoised: Denoised) -> list[Denoised | NotFiniteError]:
    """Splits a batch: returns each clip's part of the result, or the error of a clip that is not finite.

    Each of N clips gets an N-th of all seconds and bytes. Calls, all-to-alls and memory are the whole batch's.
    """
    num_clips = len(denoised.latents)
    seconds = tuple(step_s / num_clips for step_s in denoised.step_seconds)
    traffic = denoised.traffic
    share = Traffic(
        all_to_alls=traffic.all_to_alls,
        all_to_all_bytes=traffic.all_to_all_bytes // num_clips,
        gathers=traffic.gathers,
        gather_bytes=traffic.gather_bytes // num_clips,
    )
    waiting = Waiting(denoised.waiting.exposed_s / num_clips, denoised.waiting.hidden_s / num_clips)
    parts: list[Denoised | NotFiniteError] = []
    for row, not_finite in enumerate(denoised.not_finite):
        latents = denoised.latents[row : row + 1]
        if not_finite:
            parts.append(NotFiniteError(not_finite_text(not_finite, latents)))
            continue
        parts.append(
            replace(denoised, latents=latents, not_finite=(0,), step_seconds=seconds, traffic=share, waiting=waiting)
        )
    return parts
