"""Open-Sora-Plan 1.2.0's transformer: attention over all patches of all frames at once, with rotary places in 3-D.

There is no temporal branch. A clip's patches are split over the ranks along the frames, rows or columns, whichever fits
best; two all-to-alls inside the self-attention site trade patches for heads and back (arXiv 2309.14509, section 3), so a
broadcast attention skips them.

Shape letters: B guidance rows x clips, A the axis that is split, R the patches at one place of A, N = A x R all patches,
L text tokens, H heads, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.broadcast.state import Visit, handed_over, run_block, run_blocks
from pab.families.open_sora_plan.sites import open_sora_plan_sites
from pab.nn.adaln_single import (
    Attention,
    FeedForward,
    PatchEmbed2D,
    TextProjection,
    TimestepModulation,
    masked_bias,
    modulated_norm,
    modulation_table,
)
from pab.nn.adaln_transformer import keys_values_of, project_out, published_sizes, step_modulation
from pab.nn.layers import axial_rotation, position_embedding_1d, rotate_halves, unpatchify
from pab.parallel.mesh import SequenceParallel
from pab.parallel.parts import largest_part
from pab.parallel.ulysses import ulysses_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSoraPlanConfig:
    """Sizes of one model; the defaults are the published checkpoint's (2.8 billion elements).

    `sample_size`: latent frames, height and width of the training. `place_scale` divides places along them.
    """

    num_layers: int = 32
    num_heads: int = 24
    head_dim: int = 96
    in_channels: int = 4
    out_channels: int = 4
    patch_size: int = 2
    sample_size: tuple[int, int, int] = (8, 60, 80)
    place_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    caption_channels: int = 4096
    use_rope: bool = True

    def __post_init__(self) -> None:
        if self.use_rope and self.head_dim % 6:
            raise ValueError(f"head_dim={self.head_dim}, rotary places in 3-D need a multiple of 6")

    @property
    def hidden_size(self) -> int:
        """Channels of a token."""
        return self.num_heads * self.head_dim


def open_sora_plan_config(published: Mapping[str, Any]) -> OpenSoraPlanConfig:
    """Reads a published `config.json`. Raises ValueError naming the first option that is not built."""
    sizes = published_sizes(published, "Open-Sora-Plan 1.2.0")
    frames, (height, width) = int(published["sample_size_t"]), published["sample_size"]
    scales = [published.get(f"interpolation_scale_{axis}") for axis in "thw"]
    # What the published class takes where the configuration says null: the size over that of the first training.
    usual = ((frames - 1) // 16 + 1 if frames % 2 else frames / 16, height / 30, width / 40)
    time, row, column = (
        float(default if scale is None else scale) for scale, default in zip(scales, usual, strict=True)
    )
    return OpenSoraPlanConfig(
        **sizes,
        sample_size=(frames, int(height), int(width)),
        place_scale=(time, row, column),
        use_rope=bool(published.get("use_rope", False)),
    )


def split_axis(grid: tuple[int, int, int], ranks: int) -> int:
    """Returns which of frames, rows and columns (0, 1, 2) is split over the ranks: the one whose parts are most alike."""
    return min(range(3), key=lambda axis: largest_part(grid[axis], ranks) / grid[axis])


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What of a clip does not depend on the step, made once per clip and guidance branch.

    `grid`: frames, patch rows and columns of the whole clip; tensors named THW stand on it. `keys_values`: per block
    [B, 2, H, L, D/H]. `text_bias` [B, 1, 1, L] and `mask_BTHW` (1 for patches that count) are None when all count. Places
    are told by `rotation_THW` (cosines and sines) or by `positions_THWD`.
    """

    grid: tuple[int, int, int]
    keys_values: tuple[Tensor, ...]
    text_bias: Tensor | None
    mask_BTHW: Tensor | None
    rotation_THW: tuple[Tensor, Tensor] | None
    positions_THWD: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockContext:
    """What every block of one pass shares.

    `modulation` [B, 6, D]. `rotation`: of this rank's patches [A, R, 1, 3, head_dim/6]. `bias` [B, 1, 1, N] leaves patches
    out. `length`: all ranks' places along the split axis.
    """

    modulation: Tensor
    rotation: tuple[Tensor, Tensor] | None
    bias: Tensor | None
    length: int
    sp: SequenceParallel


class FullAttention(Attention):
    """Self attention over all patches of a clip, whichever rank holds them."""

    def forward(self, x_BARD: Tensor, context: BlockContext) -> Tensor:
        """Returns [B, A, R, D]."""
        q, k, v = (layer(x_BARD).unflatten(-1, (self.num_heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
        if context.rotation is not None:
            q, k = rotate_halves(q, context.rotation), rotate_halves(k, context.rotation)
        out_BPHd = ulysses_attention(
            *(x.flatten(1, 2) for x in (q, k, v)),
            lengths=[context.length],
            tokens_per_place=x_BARD.shape[2],
            sp=context.sp,
            mask=context.bias,
        )
        return self.project(out_BPHd.flatten(2).view_as(x_BARD))


class OpenSoraPlanBlock(nn.Module):
    """Self attention, cross attention and MLP; each branch is a broadcast site, kept before its gate."""

    def __init__(self, config: OpenSoraPlanConfig, index: int) -> None:
        super().__init__()
        dim = config.hidden_size
        self.sites = tuple(site.name for site in open_sora_plan_sites(index + 1) if site.block == index)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn1 = FullAttention(dim, config.num_heads)
        self.attn2 = Attention(dim, config.num_heads)
        self.ff = FeedForward(dim)

    def forward(
        self,
        x_BARD: Tensor,
        context: BlockContext,
        text: tuple[Tensor, Tensor | None],
        reuse: tuple[Tensor | None, ...] = (None, None, None),
        wanted: tuple[bool, ...] = (False, False, False),
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Returns the new tokens, and per site the output to be kept where it is wanted.

        `reuse`: per site the output kept from an earlier step, or None to compute; this step's gate applies to it.
        `text`: keys and values, and bias.
        """
        table = modulation_table(self.scale_shift_table, context.modulation)
        attended, crossed, mixed = reuse
        if attended is None:
            attended = self.attn1(modulated_norm(x_BARD, table[0], table[1]), context)
        x_BARD = x_BARD + table[2] * attended
        if crossed is None:
            crossed = self.attn2.to_text(x_BARD.flatten(1, 2), *text).view_as(x_BARD)
        x_BARD = x_BARD + crossed
        if mixed is None:
            mixed = self.ff(modulated_norm(x_BARD, table[3], table[4]))
        x_BARD = x_BARD + table[5] * mixed
        return x_BARD, handed_over((attended, crossed, mixed), wanted)


class OpenSoraPlan(nn.Module):
    """The transformer. `prepare` once per clip, `denoise` once per step; `forward` does both."""

    def __init__(self, config: OpenSoraPlanConfig) -> None:
        super().__init__()
        dim, patch = config.hidden_size, config.patch_size
        self.config = config
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.pos_embed = PatchEmbed2D(patch, config.in_channels, dim)
        self.transformer_blocks = nn.ModuleList(OpenSoraPlanBlock(config, i) for i in range(config.num_layers))
        self.proj_out = nn.Linear(dim, patch * patch * config.out_channels)
        self.adaln_single = TimestepModulation(dim)
        self.caption_projection = TextProjection(config.caption_channels, dim)

    @property
    def blocks(self) -> list[OpenSoraPlanBlock]:
        """All blocks in running order."""
        return list(self.transformer_blocks)  # type: ignore[arg-type]

    def grid(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns frames, patch rows and columns of latents of `size` = frames, height, width."""
        return size[0], size[1] // self.config.patch_size, size[2] // self.config.patch_size

    @property
    def block_stacks(self) -> tuple[nn.ModuleList, ...]:
        """The one stack of blocks."""
        return (self.transformer_blocks,)

    def latent_split(self, size: tuple[int, int, int], ranks: int) -> tuple[int, int]:
        """Returns the dim of latents [B, C, T, H, W] that is split over ranks, and what its parts are multiples of."""
        axis = split_axis(self.grid(size), ranks)
        return 2 + axis, 1 if axis == 0 else self.config.patch_size

    def prepare(
        self,
        text_BLC: Tensor,
        *,
        size: tuple[int, int, int],
        text_mask_BL: Tensor | None = None,
        latent_mask_BTHW: Tensor | None = None,
        several: bool = False,
    ) -> Conditions:
        """Makes what does not depend on the step.

        `size`: latent frames, height and width of the whole clip. Masks are 1 for what counts; text tokens that no row
        keeps are dropped. `several`: the rows are clips (`cut_text`).
        """
        weight, config, grid = self.proj_out.weight, self.config, self.grid(size)
        attentions = [block.attn2 for block in self.blocks]
        keys_values, text_bias = keys_values_of(self, attentions, text_BLC, text_mask_BL, several=several)
        mask_BTHW = None
        if latent_mask_BTHW is not None and not latent_mask_BTHW.bool().all():
            mask_BTHW = F.max_pool2d(latent_mask_BTHW.float(), config.patch_size).to(weight.device)
        places = [torch.arange(n) / scale for n, scale in zip(grid, config.place_scale, strict=True)]
        rotation = positions = None
        if config.use_rope:
            mesh = [place.flatten() for place in torch.meshgrid(*places, indexing="ij")]
            cosines, sines = axial_rotation(config.head_dim, mesh, device=weight.device)
            rotation = cosines.unflatten(0, grid), sines.unflatten(0, grid)
        else:
            positions = self._positions(grid).to(weight)
        return Conditions(
            grid=grid,
            keys_values=keys_values,
            text_bias=text_bias,
            mask_BTHW=mask_BTHW,
            rotation_THW=rotation,
            positions_THWD=positions,
        )

    def _positions(self, grid: tuple[int, int, int]) -> Tensor:
        """Returns [T, H, W, D]: embeddings of frame, and of column and row in half of the channels each."""
        config, dim = self.config, self.config.hidden_size
        trained = self.grid(config.sample_size)
        times, rows, columns = (
            torch.arange(n, dtype=torch.float64) / (n / base if axis else 1) / scale
            for axis, (n, base, scale) in enumerate(zip(grid, trained, config.place_scale, strict=True))
        )
        column = position_embedding_1d(dim // 2, columns)[None].expand(grid[1], -1, -1)
        row = position_embedding_1d(dim // 2, rows)[:, None].expand(-1, grid[2], -1)
        return position_embedding_1d(dim, times)[:, None, None] + torch.cat([column, row], dim=-1)

    def denoise(
        self,
        x_BCTHW: Tensor,
        timestep: float | Tensor,
        conditions: Conditions,
        *,
        visit: Visit | None = None,
        sp: SequenceParallel | None = None,
    ) -> Tensor:
        """Predicts the noise [B, out_channels, T, H, W] float32 for one step.

        `timestep`: 0..999, a float or [B]. Under sequence parallelism `x_BCTHW` holds this rank's part along the axis that
        `split_axis` names.
        """
        sp = sp or SequenceParallel()
        size = x_BCTHW.shape[2:]
        axis = split_axis(conditions.grid, sp.size)
        x = self.pos_embed(x_BCTHW)
        local = x.shape[1:4]
        if conditions.positions_THWD is not None:
            x = x + sp.split(conditions.positions_THWD, axis)
        modulation, embedded = step_modulation(self, timestep, x)
        context = self._context(conditions, modulation, axis, sp)
        x = x.movedim(1 + axis, 1).flatten(2, 3)
        own = sp.own_size(context.length)

        def run(x: Tensor) -> Tensor:
            for block, keys_values in zip(self.blocks, conditions.keys_values, strict=True):
                x = run_block(block, x, context, (keys_values, conditions.text_bias), visit=visit, own=own)
            return x

        x = run_blocks(x, run, visit=visit)
        x = project_out(self, x, embedded)
        rest = [n for i, n in enumerate(local) if i != axis]
        x = x.unflatten(2, rest).movedim(1, 1 + axis)
        return unpatchify(x, (1, self.config.patch_size, self.config.patch_size), size).float()

    def forward(
        self,
        x_BCTHW: Tensor,
        timestep_B: Tensor,
        text_BLC: Tensor,
        *,
        text_mask_BL: Tensor | None = None,
        latent_mask_BTHW: Tensor | None = None,
    ) -> Tensor:
        """Predicts one step from text states, with nothing kept."""
        frames, height, width = x_BCTHW.shape[2:]
        conditions = self.prepare(
            text_BLC, size=(frames, height, width), text_mask_BL=text_mask_BL, latent_mask_BTHW=latent_mask_BTHW
        )
        return self.denoise(x_BCTHW, timestep_B, conditions)

    @staticmethod
    def _context(conditions: Conditions, modulation: Tensor, axis: int, sp: SequenceParallel) -> BlockContext:
        rotation = bias = None
        if conditions.rotation_THW is not None:
            cosines, sines = (sp.split(part.movedim(axis, 0).flatten(1, 2), 0) for part in conditions.rotation_THW)
            rotation = cosines[:, :, None], sines[:, :, None]
        if conditions.mask_BTHW is not None:
            mask_BN = conditions.mask_BTHW.movedim(1 + axis, 1).flatten(1)
            bias = masked_bias(mask_BN, modulation.dtype)[:, None, None]
        return BlockContext(modulation=modulation, rotation=rotation, bias=bias, length=conditions.grid[axis], sp=sp)
