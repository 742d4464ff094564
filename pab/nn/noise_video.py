"""A loaded transformer that predicts noise (Latte, Open-Sora-Plan), as the denoising loop drives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pab.broadcast.state import BOTH, Visit
from pab.family import ClipRequest
from pab.model import DecodedFrames, EncodedPrompt, Scheduler, StepInput, UsesFloat8, UsesKernels
from pab.nn.video import LatentCodec, batch_prompts, encode_pairs, guided_prompt
from pab.parallel.mesh import NodeGroup, SequenceParallel
from pab.text.prompt_cleaning import clean
from pab.text.states import TextStates

Size = tuple[int, int, int]


class NoiseTransformer(Protocol):
    """A transformer whose text and places are prepared once per clip. Latents are [B, C, T, H, W]."""

    @property
    def block_stacks(self) -> Sequence[nn.ModuleList]:
        """The stacks of blocks that trace into whole graphs."""

    def latent_split(self, size: Size, ranks: int) -> tuple[int, int]:
        """Returns the dim of the latents that is split over ranks, and what its parts are multiples of."""

    def prepare(
        self, text_BLC: Tensor, *, size: Size, text_mask_BL: Tensor | None = None, several: bool = False
    ) -> Any:  # fmt: skip
        """Returns what does not depend on the step. `several`: the rows are clips."""

    def denoise(
        self, x_BCTHW: Tensor, timestep: float, conditions: Any, *, visit: Visit, sp: SequenceParallel
    ) -> Tensor:  # fmt: skip
        """Returns the predicted noise, float32, perhaps with further channels behind it."""


class StepNoise:
    """Fresh noise for every step, for samplers that add some: this rank's part of the whole latents' noise.

    Drawn on the CPU from each clip's own seed, behind its initial noise, so it is the same on any number of ranks and in
    any company. Steps are asked for in order, once each.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], place: Callable[[Tensor], Tensor]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape = (1, *shape)
        self._place = place
        self._next = 0
        self._draw()  # the initial noise, drawn by `initial_noise`

    def __call__(self, step: int) -> Tensor:
        """Returns the step's noise, on the model's device."""
        assert step == self._next, f"noise of step {step} asked for, step {self._next} is next"
        self._next += 1
        return self._place(self._draw())

    def _draw(self) -> Tensor:
        return torch.cat([torch.randn(self._shape, generator=generator) for generator in self._generators])


def clean_texts(request: ClipRequest, *, keep_ideographs: bool = False) -> ClipRequest:
    """Returns the clip with prompt and negative prompt cleaned as the captions of the training were."""
    cleaned = partial(clean, keep_ideographs=keep_ideographs)
    negative = request.negative_prompt
    return replace(
        request, prompt=cleaned(request.prompt), negative_prompt=None if negative is None else cleaned(negative)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseVideo:
    """A `VideoModel` over a transformer that predicts noise; guidance runs as rows or as branches.

    `sampler(request, noise)` makes a clip's scheduler, `noise` being what `StepNoise` says. With `negative_cut_by_prompt`
    both texts are cut to the tokens of the prompt, as the published Latte and Open-Sora-Plan 1.1.0 do.
    """

    transformer: NoiseTransformer
    encode_text: Callable[[Sequence[str]], TextStates]
    codec: LatentCodec
    sampler: Callable[[ClipRequest, Callable[[int], Tensor]], Scheduler]
    device: torch.device
    negative_cut_by_prompt: bool
    prepare: Callable[[ClipRequest], ClipRequest] = lambda request: request
    """Returns the clip with the texts that the encoder reads."""

    @property
    def block_stacks(self) -> Sequence[nn.ModuleList]:
        """The transformer's stacks of blocks."""
        return self.transformer.block_stacks

    def use_kernels(self) -> None:
        """Has the transformer use fused operations where they are faster; of families that have them."""
        cast(UsesKernels, self.transformer).use_kernels()

    def use_float8(self) -> None:
        """Has the transformer's blocks multiply by 8-bit floats; of families that can."""
        cast(UsesFloat8, self.transformer).use_float8()

    def encode_prompts(self, requests: Sequence[ClipRequest]) -> list[EncodedPrompt]:
        """Encodes prompts and negative prompts; the empty text stands for an absent one."""
        requests = [self.prepare(request) for request in requests]
        pairs = encode_pairs(requests, self.encode_text, absent="")
        return [self._prompt(request, *pair) for request, pair in zip(requests, pairs, strict=True)]

    def _prompt(self, request: ClipRequest, cond: TextStates, uncond: TextStates | None) -> EncodedPrompt:
        assert uncond is not None, "the empty text stands for an absent negative prompt"
        if self.negative_cut_by_prompt:
            uncond = TextStates(y_BLC=uncond.y_BLC, mask_BL=cond.mask_BL, warnings=uncond.warnings)
        return guided_prompt(cond, uncond, self._prepare(self._size(request)))

    def _prepare(self, size: Size, *, several: bool = False) -> Callable[[TextStates], object]:
        return lambda text: self.transformer.prepare(
            text.y_BLC, size=size, text_mask_BL=text.mask_BL, several=several
        )  # fmt: skip

    def batch_prompts(self, prompts: Sequence[EncodedPrompt], request: ClipRequest) -> EncodedPrompt:
        """Returns the text of several clips of one size as one."""
        return batch_prompts(prompts, self._prepare(self._size(request), several=True))

    def latent_shape(self, request: ClipRequest) -> tuple[int, ...]:
        """Returns (C, T, H, W) of the clip's latents."""
        return self.codec.latent_shape(request.num_frames, request.height, request.width)

    def _size(self, request: ClipRequest) -> Size:
        _, frames, height, width = self.latent_shape(request)
        return frames, height, width

    def scheduler(self, request: ClipRequest, sp: SequenceParallel) -> Scheduler:
        """Returns the clip's sampler."""
        return self.batch_scheduler([request], sp)

    def batch_scheduler(self, requests: Sequence[ClipRequest], sp: SequenceParallel) -> Scheduler:
        """Returns the sampler of clips side by side."""
        seeds, shape = [request.seed for request in requests], self.latent_shape(requests[0])
        return self.sampler(requests[0], StepNoise(seeds, shape, lambda noise: self._to_device(noise, sp)))

    def _to_device(self, noise: Tensor, sp: SequenceParallel) -> Tensor:
        noise = self.split(noise, sp)
        if self.device.type == "cuda":
            # Unpinned memory would make the host wait for all that is queued.
            noise = noise.contiguous().pin_memory()
        return noise.to(self.device, non_blocking=True)

    def split(self, latents: Tensor, sp: SequenceParallel) -> Tensor:
        """Returns this rank's part of whole latents."""
        frames, height, width = latents.shape[2:]
        dim, multiple = self.transformer.latent_split((frames, height, width), sp.size)
        return sp.split(latents, dim, multiple=multiple)

    def gather(self, latents: Tensor, request: ClipRequest, sp: SequenceParallel) -> Tensor:
        """Returns whole latents."""
        size = self._size(request)
        dim, multiple = self.transformer.latent_split(size, sp.size)
        return sp.gather(latents, dim, size[dim - 2], multiple=multiple)

    def predict(self, latents: Tensor, step_input: StepInput, text: object, visit: Visit, group: NodeGroup) -> Tensor:
        """Returns the predicted noise of the branch's rows."""
        rows = 2 if visit.branch == BOTH else 1
        output = self.transformer.denoise(
            latents.repeat(rows, 1, 1, 1, 1), step_input.timestep, text, visit=visit, sp=group.sp
        )
        return output[:, : latents.shape[1]]

    def decode(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns the clips' frames."""
        return self.codec.decode_frames(latents, request, group)
