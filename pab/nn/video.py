"""What the loaded models of all families share: text states, the seam to the decoder, prompts by guidance branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pab.broadcast.state import BOTH, COND, UNCOND
from pab.family import ClipRequest
from pab.model import DecodedFrames, EncodedPrompt
from pab.parallel.mesh import NodeGroup
from pab.text.states import TextStates, joined


class LatentCodec(Protocol):
    """How latents become pixels."""

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W) of a clip of this pixel size."""

    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns frames, on the device or the CPU, on the clip's root rank at least. Collective."""


def frames_of_no_clip(request: ClipRequest) -> DecodedFrames:
    """Returns frames [0, T, H, W, 3]: what a codec decodes on ranks other than the clip's root."""
    frames = torch.empty(0, request.num_frames, request.height, request.width, 3, dtype=torch.uint8)
    return DecodedFrames(frames=frames, not_finite=torch.empty(0, dtype=torch.long))


@runtime_checkable
class ReferenceCodec(LatentCodec, Protocol):
    """Also the way back, for families that take references."""

    def encode_frames(self, pixels_BCTHW: Tensor, noise: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """Returns float32 latents [B, C, t, h, w] of frames in -1..1 that begin with a chunk, on the model's device.

        `noise(shape)` draws what the codec samples its latents with.
        """

    def encode_end(
        self, latents: Tensor, latent_frames: int, noise: Callable[[tuple[int, ...]], Tensor]
    ) -> Tensor:  # fmt: skip
        """Decodes latents [B, C, T, h, w] and encodes the end of the video: the last latent frames of it, float32."""


def encode_pairs(
    requests: Sequence[ClipRequest], encode_text: Callable[[Sequence[str]], TextStates], *, absent: str | None
) -> list[tuple[TextStates, TextStates | None]]:
    """Encodes every different text once, all in one call, for which a large encoder is loaded and freed again.

    Returns per clip the states of its prompt and of its negative prompt. `absent` stands for one that is not given; with
    None there, such a clip has no negative states.
    """
    pairs = [(request.prompt, request.negative_prompt or absent) for request in requests]
    texts = list(dict.fromkeys(text for pair in pairs for text in pair if text is not None))
    states = encode_text(texts)
    rows = {text: states.row(i) for i, text in enumerate(texts)}
    return [(rows[prompt], None if negative is None else rows[negative]) for prompt, negative in pairs]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedTexts:
    """What a guided prompt was made from, kept so that those of several clips can be joined."""

    cond: TextStates
    uncond: TextStates


def batch_prompts(prompts: Sequence[EncodedPrompt], prepare: Callable[[TextStates], object]) -> EncodedPrompt:
    """Returns the prompts of several clips as one whose states `prepare` makes."""
    pairs = [prompt.texts for prompt in prompts]
    assert all(isinstance(pair, GuidedTexts) for pair in pairs), "prompts come from this model's encode_prompts"
    texts = [pair for pair in pairs if isinstance(pair, GuidedTexts)]
    return guided_prompt(joined([pair.cond for pair in texts]), joined([pair.uncond for pair in texts]), prepare)


def guided_prompt(
    cond: TextStates, uncond: TextStates | None, prepare: Callable[[TextStates], object]
) -> EncodedPrompt:
    """Returns a prompt whose states `prepare` makes for the rows of a guidance branch, on demand.

    `uncond` is None for a model that has the conditional branch alone.
    """
    rows = {COND: (cond,)} if uncond is None else {BOTH: (cond, uncond), COND: (cond,), UNCOND: (uncond,)}

    @torch.inference_mode()
    def states(branch: str) -> object:
        return prepare(joined(rows[branch]))

    warned = () if uncond is None else tuple(f"negative prompt: {warning}" for warning in uncond.warnings[0])
    return EncodedPrompt(
        states=states,
        warnings=cond.warnings[0] + warned,
        texts=None if uncond is None else GuidedTexts(cond=cond, uncond=uncond),
    )
