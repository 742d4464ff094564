"""Layers that the transformers written here share. Key names are those of the published checkpoints.

Shape letters: B batch rows, T frames, S patches of a frame, L text tokens, D channels, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.kernels import float8, linear_gelu, product8
from pab.kernels.product_end import AS_IT_IS, End, Product, ended


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dim, computed in float32, with a learned weight."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x over its last dim."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def sinusoids(values_B: Tensor, count: int) -> Tensor:
    """Returns [B, count] float32: cosines, then sines, of the values at `count / 2` frequencies from 1 to 1/10000."""
    half = count // 2
    # Made where the values are: a copy from the host would wait for all that is queued on the device.
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values_B.device) / half
    # exp in float64: a float32 exp differs by machine, and an angle of 1000 radians magnifies its last bit
    frequencies = exponents.double().exp().float()
    angles = values_B[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Mlp(nn.Module):
    """Two linear layers with tanh-GELU between."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1: nn.Linear | float8.Float8Linear = nn.Linear(in_dim, hidden_dim)
        self.fc2: nn.Linear | float8.Float8Linear = nn.Linear(hidden_dim, out_dim)

    @property
    def is_float8(self) -> bool:
        """Whether its products are of 8-bit floats."""
        return isinstance(self.fc2, float8.Float8Linear)

    @property
    def last(self) -> Product:
        """The second layer."""
        return self.fc2

    def forward(self, x: Tensor | float8.Rows8, *, fused: bool = False, end: End = AS_IT_IS) -> Tensor:
        """Maps the last dim from `in_dim` to `out_dim`, ended as `end` says.

        `fused`: GELU in the first matrix product's epilogue.
        """
        return ended(self.fc2, widened(self.fc1, x, fused=fused), end)


def widened(product: Product, x: Tensor | float8.Rows8, *, fused: bool) -> Tensor | float8.Rows8:
    """Returns tanh-GELU of a product. `fused`: in the product's epilogue. Of 8-bit floats it comes as 8-bit rows."""
    if isinstance(product, float8.Float8Linear):
        return product8.gelu_rows(product, x) if fused else float8.gelu_rows(product(x))
    assert isinstance(x, Tensor), "8-bit rows go into 8-bit products"
    widen = linear_gelu.fused if fused else linear_gelu.plain
    return widen(x, product.weight, product.bias)


class ScalarEmbedder(nn.Module):
    """Embeds one number per row: 256 sinusoids, cosines first, then two linear layers with SiLU between."""

    num_frequencies = 256

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.num_frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    @property
    def dtype(self) -> torch.dtype:
        """The layer's precision."""
        return next(self.parameters()).dtype

    def forward(self, values_B: Tensor) -> Tensor:
        """Returns [B, D] in the layer's own precision; the sinusoids are float32."""
        return self.mlp(sinusoids(values_B, self.num_frequencies).to(self.dtype))


class PatchEmbed3D(nn.Module):
    """Cuts latents into patches by a convolution, padding right, bottom and end with zeros."""

    def __init__(self, patch_size: tuple[int, int, int], in_channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, dim, kernel_size=self.patch_size, stride=self.patch_size)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, T/pt, H/ph, W/pw, D] (rounded up)."""
        missing = [-size % patch for size, patch in zip(x_BCTHW.shape[2:], self.patch_size, strict=True)]
        if any(missing):
            x_BCTHW = F.pad(x_BCTHW, [0, missing[2], 0, missing[1], 0, missing[0]])
        return self.proj(x_BCTHW).permute(0, 2, 3, 4, 1)


def unpatchify(x: Tensor, patch_size: Sequence[int], size: Sequence[int]) -> Tensor:
    """Undoes the patches: x [B, T', H', W', pt*ph*pw*C] -> [B, C, T, H, W], cut to `size` = (T, H, W)."""
    pt, ph, pw = patch_size
    batch, t, h, w, _ = x.shape
    x = x.reshape(batch, t, h, w, pt, ph, pw, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    x = x.reshape(batch, -1, t * pt, h * ph, w * pw)
    return x[:, :, : size[0], : size[1], : size[2]]


def position_embedding_1d(dim: int, positions: Tensor) -> Tensor:
    """Returns [len(positions), dim] float32: sines, then cosines."""
    frequencies = 1.0 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def position_embedding_2d(
    dim: int, rows: int, columns: int, *, scale: float, base_size: int, device: torch.device | None = None
) -> Tensor:
    """Returns [rows * columns, dim] float32: sine then cosine of the column in the first half, of the row in the second.

    Coordinates are `i / scale * base_size / n`, so that sizes share one frame of reference (`scale` 1 is the training
    size). Made on `device`: copied from the host it would wait for the device at every step.
    """
    half = dim // 2
    frequencies = 1.0 / (10000 ** (torch.arange(0, half, 2, dtype=torch.float32, device=device) / half))

    def embed(count: int) -> Tensor:
        coordinates = torch.arange(count, dtype=torch.float32, device=device) / scale * (base_size / count)
        angles = coordinates[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    column = embed(columns)[None].expand(rows, -1, -1)
    row = embed(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], dim=-1).reshape(rows * columns, dim)


class RotaryFrequencies(nn.Module):
    """Holds the rotary frequencies [head_dim / 2], which published checkpoints carry as a frozen parameter."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.freqs = nn.Parameter(1.0 / 10000.0**exponents, requires_grad=False)

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines [length, head_dim] float32 for interleaved pairs."""
        positions = torch.arange(length, dtype=torch.float32, device=self.freqs.device)
        angles = (positions[:, None] * self.freqs.float()).repeat_interleave(2, dim=-1)
        return angles.cos(), angles.sin()


def rotate_pairs(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Applies rotary embedding to x [..., length, head_dim], rotating pairs (x0, x1), (x2, x3), ..."""
    cosines, sines = rotation
    pairs = x.unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (x * cosines + turned * sines).to(x.dtype)


def axial_rotation(head_dim: int, coordinates: Sequence[Tensor], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines [N, axes, head_dim / axes / 2] float32: each axis turns its own part of a head.

    `coordinates`: per axis, the place [N] of every token.
    """
    part = head_dim // len(coordinates)
    frequencies = 1.0 / 10000 ** (torch.arange(0, part, 2, dtype=torch.float32) / part)
    angles = torch.stack([places.float()[:, None] * frequencies for places in coordinates], dim=1)
    return angles.cos().to(device), angles.sin().to(device)


def rotate_halves(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Applies `axial_rotation` to x [..., N, head_dim]: in each axis' part the first half turns against the second."""
    cosines, sines = rotation
    first, second = x.unflatten(-1, (cosines.shape[-2], 2, -1)).unbind(-2)
    turned = torch.stack([first * cosines - second * sines, second * cosines + first * sines], dim=-2)
    return turned.flatten(-3).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns x * (1 + scale) + shift."""
    return x * (1 + scale) + shift
