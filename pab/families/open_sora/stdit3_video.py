"""A loaded STDiT3 with its text encoder and decoder, as the denoising loop drives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from pab.broadcast.state import BOTH, Visit
from pab.conditioning.frame_masks import FrameMask
from pab.conditioning.reference_pixels import ReferencePixels
from pab.conditioning.references import ReferenceRules
from pab.families.open_sora.given_frames import GivenFrames, assemble, reference_noise
from pab.families.open_sora.stdit3 import ClipShape, STDiT3, Text
from pab.family import ClipRequest
from pab.kernels.choice import fastest
from pab.model import DecodedFrames, EncodedPrompt, EncodedReference, StepInput
from pab.nn.noise_video import StepNoise
from pab.nn.video import LatentCodec, ReferenceCodec, batch_prompts, encode_pairs, guided_prompt
from pab.parallel.mesh import NodeGroup, SequenceParallel
from pab.parallel.round_robin import round_robin
from pab.sampling.rectified_flow import RectifiedFlow
from pab.text.states import TextStates

FRAME_DIM = 2


class FastCodec(Protocol):
    """A codec that can decode faster."""

    def use_fast(self) -> None:
        """Has clips decoded faster from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class STDiT3Video:
    """A `VideoModel` over an STDiT3: frames are split over the sequence axis, guidance runs as rows or as branches."""

    transformer: STDiT3
    encode_text: Callable[[Sequence[str]], TextStates]
    codec: LatentCodec
    timesteps: Callable[[ClipRequest], tuple[float, ...]]
    model_fps: Callable[[ClipRequest], float]
    frame_channels: Callable[[int, torch.device], Tensor] | None = None
    """Channels [C, T], made on a device, that tell the model of each of T latent frames; appended to the latents."""
    model_size: Callable[[ClipRequest], tuple[float, float]] = lambda request: (request.height, request.width)
    """Height and width in pixels as the transformer is given them."""
    prepare: Callable[[ClipRequest], ClipRequest] = lambda request: request
    """Returns the clip with the texts that the encoder reads."""
    references: ReferenceRules | None = None
    """How clips take references; the codec is then a `ReferenceCodec`."""

    @property
    def block_stacks(self) -> Sequence[nn.ModuleList]:
        """The spatial and the temporal blocks."""
        return self.transformer.spatial_blocks, self.transformer.temporal_blocks

    def use_kernels(self) -> None:
        """Has the transformer use fused operations where they are faster."""
        self.transformer.choose_kernels = fastest

    def use_float8(self) -> None:
        """Has the transformer's blocks multiply by 8-bit floats."""
        self.transformer.use_float8()

    def use_fast_decode(self) -> None:
        """Has clips decoded faster from now on; of families that have it."""
        cast(FastCodec, self.codec).use_fast()

    @property
    def decoder_stacks(self) -> Sequence[nn.ModuleList]:
        """None: the fast decoder has kernels of its own."""
        return ()

    def same_length(self, text: object) -> object:
        """Fills the text up to the longest that the model takes, with tokens that do not count."""
        assert isinstance(text, Text), "text comes from encode_prompts"
        return text.filled(self.transformer.config.model_max_length)

    def encode_prompts(self, requests: Sequence[ClipRequest]) -> list[EncodedPrompt]:
        """Encodes prompts, and negative prompts where given; the null text stands for an absent one."""
        requests = [self.prepare(request) for request in requests]
        pairs = encode_pairs(requests, self.encode_text, absent=None)
        return [guided_prompt(cond, uncond or self._null(cond), self._prepare_text) for cond, uncond in pairs]

    def _prepare_text(self, text: TextStates) -> object:
        return self.transformer.prepare_text(text.y_BLC, text.mask_BL)

    def batch_prompts(self, prompts: Sequence[EncodedPrompt], request: ClipRequest) -> EncodedPrompt:
        """Returns the text of several clips as one."""
        return batch_prompts(
            prompts, lambda text: self.transformer.prepare_text(text.y_BLC, text.mask_BL, several=True)
        )  # fmt: skip

    def _null(self, cond: TextStates) -> TextStates:
        # The published model cuts the null text by the prompt's own mask.
        null = self.transformer.y_embedder.y_embedding[None].to(cond.y_BLC)
        return TextStates(y_BLC=null, mask_BL=cond.mask_BL, warnings=((),))

    def latent_shape(self, request: ClipRequest) -> tuple[int, ...]:
        """Returns (C, T, H, W) of the clip's latents."""
        return self.codec.latent_shape(request.num_frames, request.height, request.width)

    def scheduler(self, request: ClipRequest, sp: SequenceParallel) -> RectifiedFlow:
        """Returns rectified flow over the clip's noise levels."""
        return RectifiedFlow(timesteps=self.timesteps(request))

    def batch_scheduler(self, requests: Sequence[ClipRequest], sp: SequenceParallel) -> RectifiedFlow:
        """Returns the flow of any of them: it draws no noise."""
        return self.scheduler(requests[0], sp)

    @torch.inference_mode()
    def encode_references(
        self, request: ClipRequest, references: Sequence[ReferencePixels | None]
    ) -> list[EncodedReference | None]:
        """Encodes the references' frames with noise from the clip's seed, on every rank alike."""
        noise, rules, codec = reference_noise(request.seed), self._rules, self._reference_codec

        def encode(held: ReferencePixels) -> EncodedReference:
            first = held.start // rules.chunk_frames * rules.chunk_latents
            return codec.encode_frames(held.pixels_13THW, noise), first

        return [None if held is None else encode(held) for held in references]

    @torch.inference_mode()
    def encode_end(
        self, latents: Tensor, request: ClipRequest, *, latent_frames: int, group: NodeGroup
    ) -> EncodedReference:
        """Encodes the end of a rendered loop with noise from its seed: on the clip's root, which sends it to the others."""
        noise = reference_noise(request.seed)
        whole = self.latent_shape(request)[1]
        shape = (1, latents.shape[1], latent_frames, *latents.shape[3:])
        (end,) = round_robin(
            lambda _: self._reference_codec.encode_end(latents, latent_frames, noise),
            [shape],
            like=torch.empty(0, device=latents.device),
            axis=group.clip,
        )
        return end, whole - latent_frames

    def given_frames(
        self, request: ClipRequest, encoded: Sequence[EncodedReference | None], mask: FrameMask
    ) -> GivenFrames:
        """Puts encoded references where the mask says."""
        return GivenFrames(
            latents_BCTHW=assemble(self.latent_shape(request), mask, encoded),
            mask=mask,
            scheduler=lambda sp: self._masked_scheduler(request, mask, sp),
        )

    @property
    def _rules(self) -> ReferenceRules:
        assert self.references is not None, "only clips of a family that takes references have any"
        return self.references

    @property
    def _reference_codec(self) -> ReferenceCodec:
        assert isinstance(self.codec, ReferenceCodec), "a family that takes references can encode them"
        return self.codec

    def _masked_scheduler(self, request: ClipRequest, mask: FrameMask, sp: SequenceParallel) -> RectifiedFlow:
        device = self.transformer.final_layer.linear.weight.device
        levels_BT = torch.tensor([mask.levels], device=device)
        frames_BT = sp.split(levels_BT, 1, multiple=self.transformer.config.patch_size[0])
        if all(level in (0, 1) for level in mask.levels):
            # No frame begins on the way: what would be mixed in is never looked at.
            return replace(
                self.scheduler(request, sp), frame_mask_BT=frames_BT, noise=lambda _: levels_BT.new_zeros(())
            )
        noise = StepNoise([request.seed], self.latent_shape(request), lambda noise: self.split(noise, sp).to(device))
        return replace(self.scheduler(request, sp), frame_mask_BT=frames_BT, noise=noise)

    def split(self, latents: Tensor, sp: SequenceParallel) -> Tensor:
        """Returns this rank's frames."""
        return sp.split(latents, FRAME_DIM, multiple=self.transformer.config.patch_size[0])

    def gather(self, latents: Tensor, request: ClipRequest, sp: SequenceParallel) -> Tensor:
        """Returns all frames."""
        multiple = self.transformer.config.patch_size[0]
        return sp.gather(latents, FRAME_DIM, self.latent_shape(request)[1], multiple=multiple)

    def predict(self, latents: Tensor, step_input: StepInput, text: object, visit: Visit, group: NodeGroup) -> Tensor:
        """Returns the velocity of the branch's rows."""
        assert isinstance(text, Text), "text comes from encode_prompts"
        request = step_input.request
        rows = 2 if visit.branch == BOTH else 1
        active = step_input.active_frames
        height, width = self.model_size(request)
        output = self.transformer.denoise(
            self._given(latents, request, group.sp).repeat(rows, 1, 1, 1, 1),
            step_input.timestep,
            text,
            clip=ClipShape(
                height=height,
                width=width,
                fps=torch.full((1,), self.model_fps(request), device=latents.device),
                num_latent_frames=self.latent_shape(request)[1],
            ),
            visit=visit,
            active_BT=None if active is None else active.repeat(rows, 1),
            sp=group.sp,
        )
        return output[:, : latents.shape[1]]

    def _given(self, latents: Tensor, request: ClipRequest, sp: SequenceParallel) -> Tensor:
        if self.frame_channels is None:
            return latents
        whole = self.frame_channels(self.latent_shape(request)[1], latents.device)[None, :, :, None, None]
        mine = self.split(whole, sp).to(latents)
        return torch.cat([latents, mine.expand(len(latents), -1, -1, *latents.shape[3:])], dim=1)

    def decode(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns the clips' frames."""
        return self.codec.decode_frames(latents, request, group)
