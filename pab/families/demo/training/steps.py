"""Steps of training by flow matching, for any model that tells its loss: what is drawn, optimiser, average, CUDA graphs.

The forward and backward pass of a bucket is one CUDA graph after a few eager steps, so a small model is not bound by
launches; what is drawn (noise, timesteps, captions) is copied into the graph's inputs before each replay.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch._dynamo.exc
from torch import Tensor, nn

from pab.families.demo.training.feed import Batch, Bucket
from pab.sampling.rectified_flow import NUM_TRAIN_TIMESTEPS

_LOG = logging.getLogger(__name__)
_PEAK_RATE = 1e-3
_WARM_UP_STEPS = 500
_DECAY_FROM = 0.55  # of the stage: constant before, cosine to nearly zero after
_EMA_DECAY = 0.9995
_NULL_TEXT = 0.1
_EAGER_STEPS = 3
_HIGH_NOISE = 0.5  # of the rows: drawn where direction is decided; below, the noisy frames show it without the text
_HIGH_NOISE_FROM = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """What one step reads; under a CUDA graph these tensors keep their place and are filled anew."""

    data: Tensor
    noise: Tensor
    timestep_B: Tensor
    fps_1: Tensor
    ids_BL: Tensor
    direction_B: Tensor
    null_B: Tensor

    @classmethod
    def empty(cls, batch: Batch) -> "StepInputs":
        """Makes inputs for batches like the given one."""
        rows, device = len(batch.data), batch.data.device
        return cls(
            data=torch.empty_like(batch.data),
            noise=torch.empty_like(batch.data),
            timestep_B=torch.empty(rows, device=device),
            fps_1=torch.empty(1, device=device),
            ids_BL=torch.empty_like(batch.ids_BL),
            direction_B=torch.empty_like(batch.direction_B),
            null_B=torch.empty(rows, dtype=torch.bool, device=device),
        )

    def fill(self, batch: Batch, step: int) -> None:
        """Takes a batch and draws noise, timesteps and the rows that lose their text."""
        rows, device = len(batch.data), batch.data.device
        self.data.copy_(batch.data)
        self.ids_BL.copy_(batch.ids_BL)
        self.direction_B.copy_(batch.direction_B)
        self.noise.normal_()
        self.timestep_B.copy_(draw_timesteps(rows, device))
        self.null_B.copy_(torch.rand(rows, device=device) < _NULL_TEXT)
        self.fps_1.fill_(1 + step * 37 % 60)  # every rate of 1 to 60 in turn: none changes the picture


def draw_timesteps(count: int, device: torch.device) -> Tensor:
    """Draws noise levels 0..1000: half of them high, the rest mostly logit-normal, where places and colours are decided."""
    logit_normal = torch.sigmoid(torch.randn(count, device=device) * 1.3 + 0.5)
    uniform = torch.rand(count, device=device)
    chosen = torch.where(torch.rand(count, device=device) < 0.2, uniform, logit_normal)
    high = _HIGH_NOISE_FROM + (1 - _HIGH_NOISE_FROM) * torch.rand(count, device=device)
    chosen = torch.where(torch.rand(count, device=device) < _HIGH_NOISE, high, chosen)
    return chosen * NUM_TRAIN_TIMESTEPS


class TrainedModel(Protocol):
    """A model that steps train, with everything made on its device: a CUDA graph cannot copy from the CPU."""

    def constants(self, bucket: Bucket, data: Tensor) -> tuple[Tensor, ...]:
        """Makes what all batches of a bucket share, once. `data`: latents of one batch."""

    def losses(self, inputs: StepInputs, constants: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Returns the loss that is reported and the one that is differentiated, both scalars."""

    def leave_uncompiled(self) -> None:
        """Runs the blocks as they are from now on."""


@dataclass(slots=True)
class _BucketStep:
    """One bucket's inputs and, once captured, its graph."""

    inputs: StepInputs
    constants: tuple[Tensor, ...]
    eager_steps: int = 0
    graph: torch.cuda.CUDAGraph | None = None


@dataclass(slots=True)
class ModelTraining:
    """A model and its optimiser, the modules that are averaged, and the graphs."""

    model: TrainedModel
    averages: Sequence[tuple[nn.Module, nn.Module]]
    """Averaged modules, each with the trained one."""
    optimiser: torch.optim.AdamW
    loss_sum: Tensor
    graphs: bool
    step: int = 0
    bucket_steps: dict[str, _BucketStep] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        model: TrainedModel,
        parameters: Sequence[nn.Parameter],
        averages: Sequence[tuple[nn.Module, nn.Module]],
        *,
        graphs: bool,
    ) -> "ModelTraining":
        """Starts training `parameters` as they are, on their device."""
        device = parameters[0].device
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return cls(
            model=model,
            averages=averages,
            optimiser=torch.optim.AdamW(groups, lr=_PEAK_RATE, betas=(0.9, 0.98), fused=device.type == "cuda"),
            loss_sum=torch.zeros((), device=device),
            graphs=graphs,
        )

    @property
    def trained(self) -> list[nn.Parameter]:
        """Returns the parameters that the optimiser changes."""
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def train_batch(self, bucket: Bucket, batch: Batch, progress: float) -> None:
        """Takes one step at `progress` 0..1 of the stage; the loss is added to `loss_sum`."""
        state = self.bucket_steps.get(bucket.name)
        if state is None:
            state = _BucketStep(inputs=StepInputs.empty(batch), constants=self.model.constants(bucket, batch.data))
            self.bucket_steps[bucket.name] = state
        state.inputs.fill(batch, self.step)
        self._differentiate(state, bucket)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, progress)
        self.optimiser.step()
        self.step += 1
        self._average()

    def _differentiate(self, state: _BucketStep, bucket: Bucket) -> None:
        if state.graph is None and self.graphs and state.eager_steps >= _EAGER_STEPS:
            # Capturing records the work without doing it, so the replay below is this step's.
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                self._forward_backward(state)
            state.graph = graph
            _LOG.info("bucket %s: captured as a CUDA graph at step %d", bucket.name, self.step)
        if state.graph is not None:
            state.graph.replay()
            return
        try:
            self._forward_backward(state)
        except torch._dynamo.exc.TorchDynamoException as error:
            _LOG.warning("the blocks cannot be compiled here, going on without (as with --no-compile): %s", error)
            self.model.leave_uncompiled()
            self._forward_backward(state)
        state.eager_steps += 1

    def _forward_backward(self, state: _BucketStep) -> None:
        device = self.loss_sum.device.type
        self.zero_gradients()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
            reported, loss = self.model.losses(state.inputs, state.constants)
        loss.backward()
        self.loss_sum.add_(reported.detach())

    def zero_gradients(self) -> None:
        """Sets gradients to zero where they are: a graph writes to their places."""
        torch._foreach_zero_([p.grad for p in self.trained if p.grad is not None])

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(_EMA_DECAY, (1 + self.step) / (10 + self.step))
        for average, now in self.averages:
            torch._foreach_lerp_(list(average.parameters()), list(now.parameters()), 1 - decay)


def learning_rate(step: int, progress: float) -> float:
    """Returns the rate: a short warm-up, constant, then a cosine over the last part of the stage."""
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    fall = min(max((progress - _DECAY_FROM) / (1 - _DECAY_FROM), 0.0), 1.0)
    return _PEAK_RATE * warm * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * fall)))
