"""Stage 2 of training: transformer and text encoder together, by rectified flow on the frozen autoencoder's latents.

The forward and backward pass of a bucket is one CUDA graph after a few eager steps, so the small model is not bound by
launches; what is drawn (noise, timesteps, captions) is copied into the graph's inputs before each replay.
"""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch._dynamo.exc
import torch.nn.functional as F
from torch import Tensor, nn

from pab.families.demo.frame_position import frame_positions, with_frame_positions
from pab.families.demo.scene import DIRECTIONS
from pab.families.demo.training.feed import UNSTATED, Batch, Bucket
from pab.families.demo.weights import DemoParts
from pab.families.open_sora.stdit3 import ClipShape, STDiT3
from pab.families.open_sora.stdit3_blocks import BlockContext, STDiT3Block
from pab.nn.layers import ScalarEmbedder, unpatchify
from pab.parallel.mesh import SequenceParallel
from pab.sampling.rectified_flow import NUM_TRAIN_TIMESTEPS, add_noise

_LOG = logging.getLogger(__name__)
_PEAK_RATE = 1e-3
_WARM_UP_STEPS = 500
_DECAY_FROM = 0.55  # of the stage: constant before, cosine to nearly zero after
_EMA_DECAY = 0.9995
_NULL_TEXT = 0.1
_EAGER_STEPS = 3
_PROBE_WEIGHT = 0.1
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


class VelocityModel(nn.Module):
    """Text encoder and transformer as training runs them: equal to `STDiT3.forward`, with nothing made on the CPU.

    A linear probe reads the direction from the text states, for training only: "left" and "right" otherwise collapse
    into one state before the transformer has learned what to do with them.
    """

    def __init__(self, parts: DemoParts, *, compiled: bool = False) -> None:
        """Wraps the parts' own modules; compiled blocks are compiled one by one, per size."""
        super().__init__()
        self.transformer: STDiT3 = parts.transformer
        self.text_encoder = parts.text_encoder
        self.direction_probe = nn.Linear(parts.text_encoder.config.channels, len(DIRECTIONS), device=parts.device)
        self._run_block: Callable[..., Tensor] = _run_block
        if compiled:
            self._run_block = torch.compile(_run_block, dynamic=False, fullgraph=True)

    def forward(self, inputs: StepInputs, positions_SD: Tensor, frames_CT: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts the velocity [B, C, T, H, W] in float32. Returns it and the probe's loss."""
        model = self.transformer
        x_BCTHW = add_noise(inputs.data, inputs.noise, inputs.timestep_B[:, None, None, None, None])
        rows, channels, *size = x_BCTHW.shape
        x = model.x_embedder(with_frame_positions(x_BCTHW, frames_CT))
        _, num_frames, height, width, dim = x.shape
        x = x.flatten(2, 3) + positions_SD
        t_BD = _embed(model.t_embedder, inputs.timestep_B) + _embed(model.fps_embedder, inputs.fps_1)
        modulation = model.t_block(t_BD).view(rows, 6, dim)
        y_BLC = self.text_encoder(inputs.ids_BL)[:, 0]
        probed = self.direction_probe(y_BLC.mean(dim=1)).float()
        probe_loss = F.cross_entropy(probed, inputs.direction_B, ignore_index=UNSTATED, reduction="sum") / rows
        y_BLC = torch.where(inputs.null_B[:, None, None], model.y_embedder.y_embedding, y_BLC)
        text_BLD = model.y_embedder(y_BLC)
        context = BlockContext(
            modulation=modulation,
            modulation0=None,
            active_BT=None,
            rotation=model.rope(num_frames),
            num_frames=num_frames,
            sp=SequenceParallel(),
        )
        for block in model.blocks:
            x = self._run_block(block, x, context, text_BLD)
        x = model.final_layer(x, t_BD, None, None).unflatten(2, (height, width))
        return unpatchify(x, model.config.patch_size, size)[:, :channels].float(), probe_loss

    def leave_uncompiled(self) -> None:
        """Runs the blocks as they are from now on."""
        self._run_block = _run_block

    def positions(self, bucket: Bucket, latents: Tensor) -> Tensor:
        """Returns the position embedding [S, D] of a bucket's clips."""
        clip = ClipShape(
            height=bucket.size.height, width=bucket.size.width, fps=torch.ones(1), num_latent_frames=latents.shape[2]
        )
        _, ph, pw = self.transformer.config.patch_size
        rows, columns = -(-latents.shape[3] // ph), -(-latents.shape[4] // pw)
        return self.transformer._positions(rows, columns, clip).to(latents.device)


def _run_block(block: STDiT3Block, x_BTSD: Tensor, context: BlockContext, text_BLD: Tensor) -> Tensor:
    x_BTSD, _ = block(x_BTSD, context, (block.cross_attn.keys_values(text_BLD), None))
    return x_BTSD


def _embed(embedder: ScalarEmbedder, values_B: Tensor) -> Tensor:
    # As ScalarEmbedder embeds, with the frequencies made on the device: a CUDA graph cannot copy from the CPU.
    half = embedder.num_frequencies // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values_B.device) * (-math.log(10000) / half)
    angles = values_B[:, None] * exponents.exp()
    embedded: Tensor = embedder.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
    return embedded


def initialise(parts: DemoParts) -> None:
    """Sets starting weights for training: Xavier for linear layers, zero for the output, small for the modulation."""
    transformer = parts.transformer
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for embedder in (transformer.t_embedder, transformer.fps_embedder):
        for layer in embedder.mlp.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
    for layer in transformer.t_block.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    for block in transformer.blocks:
        nn.init.zeros_(block.cross_attn.proj.weight)
    nn.init.zeros_(transformer.final_layer.linear.weight)


@dataclass(slots=True)
class _BucketStep:
    """One bucket's inputs and, once captured, its graph."""

    inputs: StepInputs
    positions_SD: Tensor
    frames_CT: Tensor
    eager_steps: int = 0
    graph: torch.cuda.CUDAGraph | None = None


@dataclass(slots=True)
class TransformerTraining:
    """Model, averaged model and optimiser: everything that a checkpoint of stage 2 holds, and the graphs."""

    parts: DemoParts
    averaged: DemoParts
    model: VelocityModel
    optimiser: torch.optim.AdamW
    loss_sum: Tensor
    graphs: bool
    step: int = 0
    bucket_steps: dict[str, _BucketStep] = field(default_factory=dict)

    @classmethod
    def create(cls, parts: DemoParts, *, compiled: bool, graphs: bool) -> "TransformerTraining":
        """Starts training from the parts as they are, on their device."""
        model = VelocityModel(parts, compiled=compiled)
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        groups = [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": 0.01},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
        fused = parts.device.type == "cuda"
        return cls(
            parts=parts,
            averaged=copy.deepcopy(parts),
            model=model,
            optimiser=torch.optim.AdamW(groups, lr=_PEAK_RATE, betas=(0.9, 0.98), fused=fused),
            loss_sum=torch.zeros((), device=parts.device),
            graphs=graphs,
        )

    def train_batch(self, bucket: Bucket, batch: Batch, progress: float) -> None:
        """Takes one step at `progress` 0..1 of the stage; the loss is added to `loss_sum`."""
        state = self.bucket_steps.get(bucket.name)
        if state is None:
            state = _BucketStep(
                inputs=StepInputs.empty(batch),
                positions_SD=self.model.positions(bucket, batch.data),
                frames_CT=frame_positions(batch.data.shape[2], batch.data.device),
            )
            self.bucket_steps[bucket.name] = state
        state.inputs.fill(batch, self.step)
        self._differentiate(state, bucket)
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, 1.0)
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
        device = self.parts.device.type
        self.zero_gradients()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
            velocity, probe_loss = self.model(state.inputs, state.positions_SD, state.frames_CT)
        loss = (velocity - (state.inputs.data - state.inputs.noise)).square().mean()
        (loss + _PROBE_WEIGHT * probe_loss).backward()
        self.loss_sum.add_(loss.detach())

    def zero_gradients(self) -> None:
        """Sets gradients to zero where they are: a graph writes to their places."""
        torch._foreach_zero_([p.grad for p in self.model.parameters() if p.grad is not None])

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(_EMA_DECAY, (1 + self.step) / (10 + self.step))
        for average, now in zip(
            (self.averaged.transformer, self.averaged.text_encoder),
            (self.parts.transformer, self.parts.text_encoder),
            strict=True,
        ):
            torch._foreach_lerp_(list(average.parameters()), list(now.parameters()), 1 - decay)


def learning_rate(step: int, progress: float) -> float:
    """Returns the rate: a short warm-up, constant, then a cosine over the last part of the stage."""
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    fall = min(max((progress - _DECAY_FROM) / (1 - _DECAY_FROM), 0.0), 1.0)
    return _PEAK_RATE * warm * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * fall)))
