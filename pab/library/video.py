"""A loaded transformer of the diffusers library, as the denoising loop drives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pab.broadcast.state import BOTH, COND, Visit
from pab.family import ClipRequest
from pab.library.broadcast_module import CurrentPass
from pab.library.fused import fuse, use_float8_attention, use_float8_products
from pab.library.image import EncodeImage, GivenImage
from pab.library.vae import FastCodec
from pab.model import DecodedFrames, EncodedPrompt, Scheduler, StepInput
from pab.nn.video import LatentCodec, encode_pairs, guided_prompt
from pab.parallel.mesh import NodeGroup, SequenceParallel
from pab.text.states import TextStates

if TYPE_CHECKING:
    from pab.conditioning.reference_pixels import ReferenceImage

UNREAD_NEGATIVE = "the negative prompt is not read: this model takes guidance_scale as an input, in one pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusersVideo:
    """A `VideoModel` whose blocks are wrappers that ask `current` which pass runs.

    `denoise(rows, step_input, text)` runs the transformer on latents [rows, C, T, H, W] with what `prepare_text` made for as
    many rows. `guided_passes` is what the published pipeline does: both rows in one pass, or a pass for each, whose kept
    outputs then are apart as well, or the conditional pass alone. Ranks that share a pass hold the whole latents and split
    them within the transformer.
    """

    denoise: Callable[[Tensor, StepInput, Any], Tensor]
    current: CurrentPass
    block_stacks: Sequence[nn.ModuleList]
    """The transformers' blocks with sites; what compiles is the library's own block inside of each."""
    encode_text: Callable[[Sequence[str]], TextStates]
    prepare_text: Callable[[TextStates], object]
    """From the states of a pass's rows to what the transformer is given."""
    codec: LatentCodec
    sampler: Callable[[ClipRequest], Scheduler]
    guided_passes: tuple[str, ...]
    clean: Callable[[str], str] = lambda text: text
    encode_image: EncodeImage | None = None
    """Encodes the image that a clip begins with; None for a family that takes none."""
    shape_of: Callable[[ClipRequest], tuple[int, ...]] | None = None
    """The shape of a clip's latents, where more than its size decides it."""

    def use_kernels(self) -> None:
        """Has the blocks use fused operations where they are faster; of families that have them."""
        fuse(self.block_stacks, self.current)

    def use_float8(self) -> None:
        """Has the blocks multiply by 8-bit floats."""
        use_float8_products(self.block_stacks, self.current)

    def use_float8_attention(self) -> None:
        """Has the attention that exchanges tokens take 8-bit floats; of families that have it."""
        use_float8_attention(self.block_stacks, self.current)

    def use_fast_decode(self) -> None:
        """Has clips decoded in 16 bits and in as few pieces as fit; of families that have it."""
        cast(FastCodec, self.codec).use_fast()

    @property
    def decoder_stacks(self) -> Sequence[nn.ModuleList]:
        """What of the fast decoder compiles."""
        return (nn.ModuleList(cast(FastCodec, self.codec).compiled_parts()),)

    def encode_prompts(self, requests: Sequence[ClipRequest]) -> list[EncodedPrompt]:
        """Encodes prompts and negative prompts; the empty text stands for an absent one, where there is a branch for it."""
        absent = "" if self._two_branches else None
        pairs = encode_pairs([self._cleaned(request) for request in requests], self.encode_text, absent=absent)
        return [self._prompt(request, *pair) for request, pair in zip(requests, pairs, strict=True)]

    @property
    def _two_branches(self) -> bool:
        return self.guided_passes != (COND,)

    def _cleaned(self, request: ClipRequest) -> ClipRequest:
        negative = self.clean(request.negative_prompt or "") if self._two_branches else None
        return replace(request, prompt=self.clean(request.prompt), negative_prompt=negative)

    def _prompt(self, request: ClipRequest, cond: TextStates, uncond: TextStates | None) -> EncodedPrompt:
        prompt = guided_prompt(cond, uncond, self.prepare_text)
        unread = (UNREAD_NEGATIVE,) if request.negative_prompt and not self._two_branches else ()
        return replace(prompt, guided_passes=self.guided_passes, warnings=prompt.warnings + unread)

    @torch.inference_mode()
    def given_image(self, request: ClipRequest, image: ReferenceImage) -> GivenImage:
        """Brings an image to the clip's size and encodes it."""
        assert self.encode_image is not None, "only clips of a family that takes an image have one"
        condition = self.encode_image(request, image)
        return GivenImage(
            condition=condition,
            num_frames=self.latent_shape(request)[1],
            sampler=lambda: self.sampler(request),
            own_states=None if condition.texts is None else guided_prompt(*condition.texts, self.prepare_text).states,
        )

    def latent_shape(self, request: ClipRequest) -> tuple[int, ...]:
        """Returns (C, T, H, W) of the clip's latents."""
        if self.shape_of is not None:
            return self.shape_of(request)
        return self.codec.latent_shape(request.num_frames, request.height, request.width)

    def scheduler(self, request: ClipRequest, sp: SequenceParallel) -> Scheduler:
        """Returns the clip's sampler."""
        return self.sampler(request)

    def split(self, latents: Tensor, sp: SequenceParallel) -> Tensor:
        """Returns the latents whole: they are split within each pass."""
        return latents

    def gather(self, latents: Tensor, request: ClipRequest, sp: SequenceParallel) -> Tensor:
        """Returns the latents, which are whole."""
        return latents

    def predict(self, latents: Tensor, step_input: StepInput, text: object, visit: Visit, group: NodeGroup) -> Tensor:
        """Returns the prediction for the branch's rows, in the transformer's precision."""
        rows = latents.repeat(2, 1, 1, 1, 1) if visit.branch == BOTH else latents
        with self.current.running(visit, group.sp):
            return self.denoise(rows, step_input, text)

    def decode(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns the clips' frames."""
        return self.codec.decode_frames(latents, request, group)
