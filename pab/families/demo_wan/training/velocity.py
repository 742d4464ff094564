"""What demo_wan's training runs: the library's transformer, block by block, and its starting weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pab.families.demo.text import TextEncoder
from pab.families.demo.training.feed import Bucket
from pab.families.demo.training.steps import StepInputs
from pab.sampling.rectified_flow import add_noise


class WanVelocity(nn.Module):
    """The frozen text encoder and the transformer: equal to the library's forward pass, with the blocks' sums in float32."""

    def __init__(self, transformer: Any, text_encoder: TextEncoder, *, compiled: bool = False) -> None:
        """Wraps both; compiled blocks are compiled one by one, per size."""
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder
        self._run_block: Callable[..., Tensor] = _run_block
        if compiled:
            self._run_block = torch.compile(_run_block, dynamic=False, fullgraph=True)

    def forward(self, inputs: StepInputs, empty_L: Tensor) -> Tensor:
        """Predicts the velocity, noise less data, [B, C, T, H, W] in float32. `empty_L`: the ids of an empty prompt."""
        model = self.transformer
        noisy_BCTHW = add_noise(inputs.data, inputs.noise, inputs.timestep_B[:, None, None, None, None])
        with torch.no_grad():
            text_BLC = self.text_encoder(torch.where(inputs.null_B[:, None], empty_L, inputs.ids_BL))[:, 0]
        rotation = model.rope(noisy_BCTHW)
        x_BCTHW = model.patch_embedding(noisy_BCTHW)
        size = x_BCTHW.shape[2:]
        # The sampler's timesteps are whole numbers.
        temb_BD, modulation, text_BLD, _ = model.condition_embedder(inputs.timestep_B.floor(), text_BLC)
        x_BSD = x_BCTHW.flatten(2).transpose(1, 2).float().contiguous()
        for block in model.blocks:
            x_BSD = self._run_block(block, x_BSD, text_BLD, modulation.unflatten(1, (6, -1)), rotation)
        shift, scale = (model.scale_shift_table + temb_BD[:, None]).chunk(2, dim=1)
        x_BSD = model.proj_out(model.norm_out(x_BSD) * (1 + scale) + shift).float()
        patches = x_BSD.unflatten(2, (*model.config.patch_size, -1)).unflatten(1, size)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def losses(self, inputs: StepInputs, constants: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Returns the mean squared error of the velocity, twice: it is reported and differentiated."""
        loss = (self(inputs, *constants) - (inputs.noise - inputs.data)).square().mean()
        return loss, loss

    def constants(self, bucket: Bucket, data: Tensor) -> tuple[Tensor, ...]:
        """Returns the ids of an empty prompt."""
        return (self.text_encoder.tokenizer.batch([""])[0].to(data.device),)

    def leave_uncompiled(self) -> None:
        """Runs the blocks as they are from now on."""
        self._run_block = _run_block


def _run_block(
    block: nn.Module, x_BSD: Tensor, text_BLD: Tensor, modulation: Tensor, rotation: tuple[Tensor, Tensor]
) -> Tensor:
    out: Tensor = block(x_BSD, text_BLD, modulation, rotation)
    return out


def initialise(transformer: Any) -> None:
    """Sets starting weights for training: Xavier for linear layers, zero for the output, small for the modulation."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    embedder = transformer.condition_embedder
    for layer in (*embedder.time_embedder.modules(), embedder.time_proj, *embedder.text_embedder.modules()):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    for block in transformer.blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(transformer.proj_out.weight)
