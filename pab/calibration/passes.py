"""A loaded model whose passes are made in another way: observed, or replayed. All else is the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import ModuleList

from pab.broadcast.state import Visit
from pab.family import ClipRequest
from pab.model import DecodedFrames, EncodedPrompt, Scheduler, StepInput, VideoModel
from pab.parallel.mesh import NodeGroup, SequenceParallel

MakePass = Callable[[Tensor, StepInput, object, Visit, NodeGroup], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWithPasses:
    """A `VideoModel` that makes its passes by `make_pass`, which takes what `predict` takes."""

    model: VideoModel
    make_pass: MakePass

    @property
    def block_stacks(self) -> Sequence[ModuleList]:
        """The model's."""
        return self.model.block_stacks

    def encode_prompts(self, requests: Sequence[ClipRequest]) -> list[EncodedPrompt]:
        """Does what the model does."""
        return self.model.encode_prompts(requests)

    def latent_shape(self, request: ClipRequest) -> tuple[int, ...]:
        """Returns the model's."""
        return self.model.latent_shape(request)

    def scheduler(self, request: ClipRequest, sp: SequenceParallel) -> Scheduler:
        """Returns the model's."""
        return self.model.scheduler(request, sp)

    def split(self, latents: Tensor, sp: SequenceParallel) -> Tensor:
        """Does what the model does."""
        return self.model.split(latents, sp)

    def gather(self, latents: Tensor, request: ClipRequest, sp: SequenceParallel) -> Tensor:
        """Does what the model does."""
        return self.model.gather(latents, request, sp)

    def predict(self, latents: Tensor, step_input: StepInput, text: object, visit: Visit, group: NodeGroup) -> Tensor:
        """Makes a pass."""
        return self.make_pass(latents, step_input, text, visit, group)

    def decode(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Does what the model does."""
        return self.model.decode(latents, request, group)
