"""What a family says of how its decoder runs faster, and parts that several decoders have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.kernels import pixel_norm
from pab.library.slices import SlicedDecoder


@dataclass(frozen=True, slots=True, kw_only=True)
class FastDecoder:
    """How a loaded decoder runs faster, and rounds differently.

    `prepare()` has it compute so from then on. `latent_bytes`: what decoding holds for each latent of those decoded at once:
    all of a tile's, or of `frames_at_once` of its frames. `most_latents`: of those, whatever the memory. `slices`: how the
    decoder is cut with no seams; None for one whose norms see the whole picture, which is cut into tiles. `compiled()`
    returns, after `prepare`, the parts that are faster as compiled graphs.
    """

    prepare: Callable[[], None]
    latent_bytes: float
    frames_at_once: int | None = None
    most_latents: int | None = None
    slices: SlicedDecoder | None = None
    compiled: Callable[[], Sequence[nn.Module]] = tuple


MOST_LATENTS = 30_000
"""Of a tile whose largest tensor has 65,536 values for each latent: it stays below 2^31, above which torch refuses some
operations, and has slow convolutions."""


def use_half(vae: Any, dtype: torch.dtype = torch.bfloat16, *, channels_last: bool = True) -> None:
    """Has what decodes compute in 16 bits, its convolutions with channels last in memory unless that is slower."""
    for part in (getattr(vae, "post_quant_conv", None), vae.decoder):
        if part is None:
            continue
        part.to(dtype)
        for module in part.modules():
            if channels_last and isinstance(module, nn.Conv2d | nn.Conv3d):
                form = torch.channels_last_3d if isinstance(module, nn.Conv3d) else torch.channels_last
                module.weight.data = module.weight.data.contiguous(memory_format=form)


def decoder_dtype(vae: Any) -> torch.dtype:
    """Returns the precision in which a VAE decodes."""
    dtype: torch.dtype = next(vae.decoder.parameters()).dtype
    return dtype


class PixelNorm(nn.Module):
    """Stands in for a norm over the channels of every pixel, and perhaps for the SiLU that follows it.

    `weight`: one for each channel, the dimension after the batch.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, *, silu: bool) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().flatten(), persistent=False)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        """Returns the norm of x, of its shape."""
        return pixel_norm.fused(x, self.weight, silu=self.silu)


class NormedBlock(nn.Module):
    """Stands in for a residual block of two normed convolutions, made of the block's own parts."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.conv_shortcut = block.conv_shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, C', T, H, W] of x [B, C, T, H, W]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def frames_attention(q_BNC: Tensor, k_BNC: Tensor, v_BNC: Tensor, *, frames: int) -> Tensor:
    """Returns attention of N tokens, `frames` frames one after the other, each of which sees itself and those before it.

    Frame by frame, so no mask over all pairs of tokens is needed.
    """
    count = q_BNC.shape[1] // frames
    found = [
        F.scaled_dot_product_attention(
            q_BNC[:, None, at * count : (at + 1) * count],
            k_BNC[:, None, : (at + 1) * count],
            v_BNC[:, None, : (at + 1) * count],
        )
        for at in range(frames)
    ]
    return torch.cat(found, dim=2)[:, 0]
