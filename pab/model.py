"""The seam between the denoising loop and a loaded model of any family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn import ModuleList

from pab.broadcast.state import BOTH, Visit
from pab.conditioning.frame_masks import FrameMask
from pab.conditioning.reference_pixels import ReferenceImage, ReferencePixels
from pab.family import ClipRequest
from pab.parallel.mesh import NodeGroup, SequenceParallel


class NotFiniteError(ArithmeticError):
    """Latents after denoising, or decoded pixels, hold NaN or infinity; the message says which, and how many values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """Sound of clips: `samples` float32 [B, channels, S] of -1..1, `rate` of them in a second, from the first frame on."""

    samples: Tensor
    rate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedFrames:
    """What a decoder made of clips: `frames` uint8 [B, T, H, W, 3], and `not_finite` [B], on the frames' device.

    `not_finite`: per clip, how many decoded values were NaN or infinite before they became bytes. Bytes do not tell: they
    look like black. The device may still be at work on both. On ranks other than the clips' root both may be of no clip.
    """

    frames: Tensor
    not_finite: Tensor
    sound: Sound | None = None
    """What is heard with them, of models that render it, on the clips' root."""
    pieces: str | None = None
    """In which tiles they were decoded, where that hung on the memory left and changes pixels; None elsewhere."""

    def fetch(self) -> Tensor:
        """Returns the frames on the CPU; waits for the device. Raises NotFiniteError."""
        if count := int(self.not_finite.sum()):
            raise NotFiniteError(not_finite_pixels(count, self.frames.numel()))
        return self.frames.cpu()


def not_finite_pixels(count: int, size: int) -> str:
    """Returns what a NotFiniteError says of decoded pixels."""
    return (
        f"{count} of {size} decoded values are NaN or infinite, of finite latents; look at the weights of the VAE, or try "
        "another --precision"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """One clip's text, ready for the model.

    `states`: per guidance branch ("both", "cond", "uncond") what `VideoModel.predict` wants; made on demand, so only the
    branches a rank runs cost memory. `warnings` go into the clip's record, e.g. words the model does not know.
    `guided_passes`: the branches of a guided step on a rank that runs all of it: one pass over both rows,
    ("cond", "uncond") for a model that is published with a pass for each, or ("cond",) for one whose transformer is
    given the guidance scale. `texts`: what `RendersBatches.batch_prompts` joins for several clips; None for
    models that render one clip at a time.
    """

    states: Callable[[str], object]
    warnings: tuple[str, ...] = ()
    guided_passes: tuple[str, ...] = (BOTH,)
    texts: object = None


class Scheduler(Protocol):
    """One clip's noise levels and the update of a step. All latents are this rank's part."""

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The noise level of every model call."""

    @property
    def init_noise_sigma(self) -> float:
        """What the initial noise is multiplied by."""

    def model_input(self, latents: Tensor, step: int) -> Tensor:
        """Returns what the model is given at a step."""

    def active_frames(self, step: int) -> Tensor | None:
        """Returns [B, T] bool, False for frames that are given, not generated; None when all are generated."""

    def advance(self, latents: Tensor, model_input: Tensor, prediction: Tensor, step: int) -> Tensor:
        """Returns the latents after a step, from the guided prediction."""


@runtime_checkable
class GuidesByStep(Protocol):
    """A `Scheduler` that may change the scale between a clip's guidance branches from step to step."""

    @property
    def guidance(self) -> tuple[float, ...]:
        """The scale of every step; empty where it is the clip's own at all of them."""


@runtime_checkable
class CombinesBranches(Protocol):
    """A `Scheduler` of a model whose guidance is not written as uncond + scale * (cond - uncond)."""

    def combine(self, cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
        """Returns the guided prediction."""


class Beginning(Protocol):
    """What a batch begins from, if that is not plain noise and the model's scheduler of one clip."""

    @property
    def scheduler(self) -> Callable[[SequenceParallel], Scheduler]:
        """Makes the scheduler for a rank's part of the latents."""

    @property
    def image_states(self) -> Tensor | None:
        """What an image encoder made of a given image, [1, N, C]; None for a model without one."""

    def put_into(self, noise_BCTHW: Tensor) -> Tensor:
        """Returns whole latents to begin with."""


@runtime_checkable
class BringsText(Protocol):
    """A `Beginning` that may have the clip's text, because the model's text encoder sees the image too."""

    @property
    def own_states(self) -> Callable[[str], object] | None:
        """What stands for `EncodedPrompt.states`; None where prompts are read without the image."""


class VideoModel(Protocol):
    """A loaded model. Pixels and latents are batch first; latents are float32 [B, C, T, H, W]."""

    @property
    def block_stacks(self) -> Sequence[ModuleList]:
        """The stacks of blocks that trace into whole graphs and so may be compiled; none for a model that does not."""

    def encode_prompts(self, requests: Sequence[ClipRequest]) -> list[EncodedPrompt]:
        """Encodes the text of several clips at once; the same numbers as one by one."""

    def latent_shape(self, request: ClipRequest) -> tuple[int, ...]:
        """Returns (C, T, H, W) of the clip's latents."""

    def scheduler(self, request: ClipRequest, sp: SequenceParallel) -> Scheduler:
        """Returns the clip's scheduler, for this rank's part of the latents."""

    def split(self, latents: Tensor, sp: SequenceParallel) -> Tensor:
        """Returns this rank's part of whole latents; a model that cannot split returns them whole."""

    def gather(self, latents: Tensor, request: ClipRequest, sp: SequenceParallel) -> Tensor:
        """Undoes `split`, on every rank."""

    def predict(
        self, latents: Tensor, step_input: StepInput, text: object, visit: Visit, group: NodeGroup
    ) -> Tensor:  # fmt: skip
        """Predicts for the rows of `text`'s branch: for "both" the conditional rows, then the unconditional ones."""

    def decode(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns frames, on the device or the CPU, on the clip's root rank at least. Collective.

        Need not wait for the device: whoever reads the frames does, and looks at their `not_finite`.
        """


@runtime_checkable
class RendersBatches(Protocol):
    """A `VideoModel` that takes several clips of one size in one pass; its family has a `max_batch` above 1."""

    def batch_prompts(self, prompts: Sequence[EncodedPrompt], request: ClipRequest) -> EncodedPrompt:
        """Returns the text of several clips as one: for "both" all conditional rows, then all unconditional ones.

        Texts may differ in length; each row attends to its own tokens alone. `request`: one of the clips, for their size.
        """

    def batch_scheduler(self, requests: Sequence[ClipRequest], sp: SequenceParallel) -> Scheduler:
        """Returns what `scheduler` returns, for the clips side by side: each gets the noise that it would get alone."""


class UsesKernels(Protocol):
    """A `VideoModel` with fused GPU operations; its family has `fused_kernels`."""

    def use_kernels(self) -> None:
        """Has passes use fused operations from now on, where they are faster."""


class UsesFloat8(Protocol):
    """A `VideoModel` whose blocks can multiply by 8-bit floats; its family has `float8`."""

    def use_float8(self) -> None:
        """Has the blocks do so from now on. Call it before they are compiled."""


class UsesFloat8Attention(Protocol):
    """A `VideoModel` whose attention can take 8-bit floats; its family has `float8_attention`."""

    def use_float8_attention(self) -> None:
        """Has it do so from now on. Call it before blocks are compiled."""


class DecodesFast(Protocol):
    """A `VideoModel` whose decoder can compute faster, and round differently; its family has `fast_decode`."""

    def use_fast_decode(self) -> None:
        """Has it do so from now on."""

    @property
    def decoder_stacks(self) -> Sequence[ModuleList]:
        """What of the fast decoder traces into whole graphs and is faster so; perhaps nothing. After `use_fast_decode`."""


class Recordable(Protocol):
    """A `VideoModel` whose loop can be recorded (`pab.sampling.recorded_loop`); its family has `records_loops`.

    Its passes read nothing from the host but what a plan fixes, and its scheduler draws no noise.
    """

    def same_length(self, text: object) -> object:
        """Returns a prompt's states with tensors of one shape for all prompts; the added tokens are masked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """What one pass is given besides latents and text."""

    request: ClipRequest
    step: int
    timestep: float
    active_frames: Tensor | None
    image_states: Tensor | None = None


EncodedReference = tuple[Tensor, int]
"""Latents [1, C, t, H, W] float32 of a reference, and which of its latent frames is the first of them."""


class TakesReferences(Protocol):
    """A `VideoModel` whose clips may have references and several loops; its family has `references`."""

    def encode_references(
        self, request: ClipRequest, references: Sequence[ReferencePixels | None]
    ) -> list[EncodedReference | None]:
        """Encodes what a clip takes of each reference. `references`: None for one that it takes nothing of."""

    def encode_end(
        self, latents: Tensor, request: ClipRequest, *, latent_frames: int, group: NodeGroup
    ) -> EncodedReference:
        """Decodes a rendered loop and encodes the last frames of its video again: what the next loop begins with.

        `latents`: whole [1, C, T, H, W]. Collective over the clip's ranks, which all get the same.
        """

    def given_frames(
        self, request: ClipRequest, encoded: Sequence[EncodedReference | None], mask: FrameMask
    ) -> Beginning:
        """Puts encoded references where the mask says."""


class TakesImage(Protocol):
    """A `VideoModel` whose clips may begin with an image; the rules of its family's `references` say `first_image`."""

    def given_image(self, request: ClipRequest, image: ReferenceImage) -> Beginning:
        """Brings an image to the clip's size and encodes it, on every rank alike. Collective over the clip's ranks."""
