"""Parts of transformers whose blocks share one timestep modulation (adaLN-single, arXiv 2310.00426, section 2.3).

Latte, Open-Sora-Plan 1.1.0 and 1.2.0 are made of them; key names are those of the published checkpoints. Shape letters: B
guidance rows x clips, T frames, S patches of a frame, N tokens or sequences, L text tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.execution.compiled import any_length
from pab.kernels import float8
from pab.kernels.product_end import AS_IT_IS, End, Product, ended
from pab.nn.layers import modulate, sinusoids, widened

MASKED = -10000.0
"""Added to the scores of keys that do not count: a row without any counting key attends to all of them alike."""

_REQUIRED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "attention_type": "default",
    "num_vector_embeds": None,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "double_self_attention": False,
    "upcast_attention": False,
    "downsampler": None,
    "patch_size_t": 1,
}


def check_published(config: Mapping[str, object], what: str) -> None:
    """Raises ValueError naming the first option of a published configuration that is not built here."""
    for key, value in _REQUIRED.items():
        if config.get(key, value) != value:
            raise ValueError(f"{what}: config {key}={config[key]!r} is not supported, only {value!r}")


def masked_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what is added to attention scores: 0 where the mask is 1, `MASKED` where it is 0."""
    return (1 - mask.to(dtype)) * MASKED


def cut_text(
    text_BLC: Tensor, mask_BL: Tensor | None, *, several: bool = False
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Drops tokens that no row keeps. Returns the text, and a bias [B, 1, 1, L] where rows keep different tokens.

    `several`: the rows are clips. Then there is a bias even if all texts have one length, unless none is padded: a block
    without a bias would be another graph.
    """
    if mask_BL is None:
        return text_BLC, None
    mask_BL = mask_BL.bool().to(text_BLC.device)
    masked = several and not mask_BL.all()
    used = mask_BL.any(dim=0)
    text_BLC, mask_BL = text_BLC[:, used], mask_BL[:, used]
    if mask_BL.all() and not masked:
        return text_BLC, None
    return text_BLC, any_length(masked_bias(mask_BL, text_BLC.dtype)[:, None, None], 3)


class TimestepModulation(nn.Module):
    """Embeds the timestep once and makes every block's shifts, scales and gates from it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers = nn.ModuleDict({"linear_1": nn.Linear(256, dim), "linear_2": nn.Linear(dim, dim)})
        self.emb = nn.ModuleDict({"timestep_embedder": layers})
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, timestep_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the blocks' modulation [B, 6, D] and the embedding [B, D] that modulates the final layer."""
        layers: nn.ModuleDict = self.emb["timestep_embedder"]  # type: ignore[assignment]
        waves = sinusoids(timestep_B, 256).to(self.linear.weight.dtype)
        embedded = layers["linear_2"](F.silu(layers["linear_1"](waves)))
        return self.linear(F.silu(embedded)).unflatten(-1, (6, -1)), embedded


class TextProjection(nn.Module):
    """Projects text states to the model's width. Some published files carry an unused null text beside it."""

    def __init__(self, channels: int, dim: int, *, null_tokens: int = 0) -> None:
        super().__init__()
        if null_tokens:
            self.register_buffer("y_embedding", torch.zeros(null_tokens, channels))
        self.linear_1 = nn.Linear(channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, text_BLC: Tensor) -> Tensor:
        """Returns [B, L, D]."""
        return self.linear_2(F.gelu(self.linear_1(text_BLC), approximate="tanh"))


class PatchEmbed2D(nn.Module):
    """Cuts every frame into square patches by a convolution."""

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Returns [B, T, H/p, W/p, D]. Raises ValueError when height or width is no multiple of the patch."""
        batch, _, frames, height, width = x_BCTHW.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"latents of {height}x{width}, need multiples of patch_size={self.patch_size}")
        x = self.proj(x_BCTHW.to(self.proj.weight.dtype).transpose(1, 2).flatten(0, 1))
        return x.unflatten(0, (batch, frames)).permute(0, 1, 3, 4, 2)


class Attention(nn.Module):
    """Multi-head attention with separate query, key and value layers."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def heads(self, x: Tensor) -> Tensor:
        """Splits [..., L, D] into heads: [..., heads, L, D/heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def keys_values(self, text_BLD: Tensor) -> Tensor:
        """Returns [B, 2, heads, L, D/heads], which do not depend on the step where the source is text."""
        return torch.stack([self.heads(self.to_k(text_BLD)), self.heads(self.to_v(text_BLD))], dim=1)

    @property
    def last(self) -> Product:
        """The output layer."""
        return self.to_out[0]  # type: ignore[return-value]

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attends [N, heads, L, D/heads] under a bias that broadcasts to [N, heads, L, L]; returns [N, L, D]."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Does the same and applies the output layer."""
        return self.project(self.mixed(q, k, v, bias))

    def project(self, x: Tensor) -> Tensor:
        """Applies the output layer."""
        return self.last(x)

    def to_text(self, x: Tensor | float8.Rows8, keys_values: Tensor, bias: Tensor | None) -> Tensor:
        """Attends from video tokens [B, ..., D] to text whose keys and values are given. Returns [B, ..., D]."""
        k, v = keys_values.unbind(1)
        q = self.to_q(x)
        return self.project(self.mixed(self.heads(q.flatten(1, -2)), k, v, bias).view_as(q))


class FeedForward(nn.Module):
    """Two linear layers with tanh-GELU between, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(dim, 4 * dim)}), nn.Identity()])
        self.net.append(nn.Linear(4 * dim, dim))

    @property
    def is_float8(self) -> bool:
        """Whether its products are of 8-bit floats."""
        return isinstance(self.net[2], float8.Float8Linear)

    @property
    def last(self) -> Product:
        """The second layer."""
        return self.net[2]  # type: ignore[return-value]

    def forward(self, x: Tensor | float8.Rows8, *, fused: bool = False, end: End = AS_IT_IS) -> Tensor:
        """Maps the last dim to itself, ended as `end` says. `fused`: GELU in the first matrix product's epilogue."""
        first: nn.ModuleDict = self.net[0]  # type: ignore[assignment]
        proj: Product = first["proj"]  # type: ignore[assignment]
        return ended(self.last, widened(proj, x, fused=fused), end)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalises over the last dim without a learned weight, then shifts and scales."""
    return modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale)


def modulation_table(scale_shift_table: Tensor, modulation_BnD: Tensor) -> Tensor:
    """Returns [n, B, 1, 1, D]: a block's table plus the timestep's, ready for tokens with two dims between B and D."""
    table = (scale_shift_table + modulation_BnD).transpose(0, 1)
    return table[:, :, None, None]
