"""Stage 2 of training: transformer and text encoder together, by rectified flow on the frozen autoencoder's latents."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.families.demo.frame_position import frame_positions, with_frame_positions
from pab.families.demo.scene import DIRECTIONS
from pab.families.demo.training.feed import UNSTATED, Bucket
from pab.families.demo.training.steps import StepInputs
from pab.families.demo.weights import DemoParts
from pab.families.open_sora.stdit3 import ClipShape, STDiT3
from pab.families.open_sora.stdit3_blocks import BlockContext, STDiT3Block
from pab.nn.layers import ScalarEmbedder, unpatchify
from pab.parallel.mesh import SequenceParallel
from pab.sampling.rectified_flow import add_noise

_PROBE_WEIGHT = 0.1


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

    def losses(self, inputs: StepInputs, constants: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Returns the mean squared error of the velocity, alone and with the probe's loss."""
        velocity, probe_loss = self(inputs, *constants)
        loss = (velocity - (inputs.data - inputs.noise)).square().mean()
        return loss, loss + _PROBE_WEIGHT * probe_loss

    def constants(self, bucket: Bucket, data: Tensor) -> tuple[Tensor, ...]:
        """Returns the places of a bucket's tokens and of its frames."""
        return self.positions(bucket, data), frame_positions(data.shape[2], data.device)

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
