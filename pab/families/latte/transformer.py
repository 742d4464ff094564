"""The transformer of Latte-1 (arXiv 2401.03048, variant 1) and Open-Sora-Plan 1.1.0: spatial and temporal blocks in turn.

Shape letters: B guidance rows x clips, T frames (this rank's), S patches of a frame, L text tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.broadcast.state import Visit, run_block, run_blocks
from pab.families.latte.blocks import (
    PRODUCTS,
    TEXT_PRODUCTS,
    BlockContext,
    LatteBlock,
    LatteConfig,
)
from pab.kernels import float8
from pab.kernels.choice import ChooseKernels, fastest, plain
from pab.nn.adaln_single import (
    PatchEmbed2D,
    TextProjection,
    TimestepModulation,
    masked_bias,
)
from pab.nn.adaln_transformer import keys_values_of, project_out, published_sizes, step_modulation
from pab.nn.layers import axial_rotation, position_embedding_1d, position_embedding_2d, unpatchify
from pab.parallel.mesh import SequenceParallel

NULL_TOKENS = 120
"""Rows of the unused null text that Open-Sora-Plan's files carry."""

Rotation = tuple[Tensor, Tensor]


def latte_config(published: Mapping[str, Any]) -> LatteConfig:
    """Reads a published `config.json` of Latte-1 or Open-Sora-Plan 1.1.0. Raises ValueError naming what is not built."""
    sizes = published_sizes(published, "Latte")
    size = published["sample_size"]
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if sides[0] != sides[1]:
        raise ValueError(f"Latte: config sample_size={size}, only square training sizes are built")
    # Open-Sora-Plan's configurations have these keys, Latte's have not.
    plan = "model_max_length" in published
    length = int(published["video_length"])
    scale = published.get("interpolation_scale_1d") or (max((length - length % 2) // 16, 1) if plan else 1)
    return LatteConfig(
        **sizes,
        sample_size=int(sides[0]),
        video_length=length,
        temporal_scale=float(scale),
        null_text=plan,
        use_rope=bool(published.get("use_rope", False)),
        compress_factor=int(published.get("compress_kv_factor", 1)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What of a clip does not depend on the step, made once per clip and guidance branch.

    `keys_values`: per spatial block [B, 2, heads, L, head_dim]. `text_bias` [B, 1, 1, L] and `mask_BTS` (1 for patches
    that count, of all ranks' frames) are None when everything counts. `frame_positions_TD` are those of all ranks' frames.
    `rotations`: cosines and sines for space and time, where the model has rotary positions besides the added ones.
    """

    keys_values: tuple[Tensor, ...]
    text_bias: Tensor | None
    mask_BTS: Tensor | None
    num_frames: int
    positions_SD: Tensor
    frame_positions_TD: Tensor
    rotations: tuple[Rotation | None, Rotation | None]


def _blocks(config: LatteConfig, stack: str) -> nn.ModuleList:
    return nn.ModuleList(LatteBlock(config, i, stack=stack) for i in range(config.num_layers))


class Latte(nn.Module):
    """The transformer. `prepare` once per clip, `denoise` once per step; `forward` does both."""

    def __init__(self, config: LatteConfig) -> None:
        super().__init__()
        dim, patch = config.hidden_size, config.patch_size
        self.config = config
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.pos_embed = PatchEmbed2D(patch, config.in_channels, dim)
        self.transformer_blocks = _blocks(config, "spatial")
        self.temporal_transformer_blocks = _blocks(config, "temporal")
        self.proj_out = nn.Linear(dim, patch * patch * config.out_channels)
        self.adaln_single = TimestepModulation(dim)
        self.caption_projection = TextProjection(
            config.caption_channels, dim, null_tokens=NULL_TOKENS if config.null_text else 0
        )

        self.choose_kernels: ChooseKernels = plain
        """Says which fused operations a pass uses."""

    def use_kernels(self, choose: ChooseKernels = fastest) -> None:
        """Has passes use fused operations, and one product for queries, keys and values. Comes after weights are loaded."""
        self.choose_kernels = choose
        attentions = [block.attn1 for block in self.spatial_blocks] + [block.attn1 for block in self.temporal_blocks]
        for attention in attentions:
            attention.join_products()

    def use_float8(self) -> None:
        """Has the blocks multiply by 8-bit floats from now on; their weights in full precision are let go.

        Raises ValueError for models whose queries, keys and values cannot be one product.
        """
        if self.config.use_rope or self.config.compress_factor > 1:
            raise ValueError("8-bit products are built for models without rotary positions and compressed keys only")
        for spatial, over_time in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            spatial.attn1.join_products()
            over_time.attn1.join_products()
            float8.use_float8(spatial, PRODUCTS + TEXT_PRODUCTS)
            float8.use_float8(over_time, PRODUCTS)

    @property
    def spatial_blocks(self) -> list[LatteBlock]:
        """The blocks within frames."""
        return list(self.transformer_blocks)  # type: ignore[arg-type]

    @property
    def temporal_blocks(self) -> list[LatteBlock]:
        """The blocks over frames; number i runs after spatial block i."""
        return list(self.temporal_transformer_blocks)  # type: ignore[arg-type]

    @property
    def block_stacks(self) -> tuple[nn.ModuleList, ...]:
        """The blocks within frames and the blocks over frames."""
        return self.transformer_blocks, self.temporal_transformer_blocks

    def latent_split(self, size: tuple[int, int, int], ranks: int) -> tuple[int, int]:
        """Returns the dim of latents [B, C, T, H, W] that is split over ranks, and what its parts are multiples of."""
        return 2, 1

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
        patch, mask_BTS = self.config.patch_size, None
        if latent_mask_BTHW is not None:
            mask_BTS = F.max_pool2d(latent_mask_BTHW.float(), patch).flatten(2).to(self.proj_out.weight.device)
        attentions = [block.attn2 for block in self.spatial_blocks]
        keys_values, text_bias = keys_values_of(self, attentions, text_BLC, text_mask_BL, several=several)
        return Conditions(
            keys_values=keys_values,
            text_bias=text_bias,
            mask_BTS=mask_BTS,
            num_frames=size[0],
            **self._places(size[0], size[1] // patch, size[2] // patch),
        )

    def _places(self, frames: int, rows: int, columns: int) -> dict[str, Any]:
        """Returns the conditions that say where tokens are."""
        config, weight = self.config, self.proj_out.weight
        times = torch.arange(frames) / config.temporal_scale
        plane_SD = position_embedding_2d(
            config.hidden_size,
            rows,
            columns,
            scale=config.position_scale,
            base_size=config.sample_size // config.patch_size,
        )
        rotations: tuple[Rotation | None, Rotation | None] = (None, None)
        if config.use_rope:
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            plane = [places.flatten() / config.position_scale for places in (y, x)]
            rotations = (
                axial_rotation(config.head_dim, plane, device=weight.device),
                axial_rotation(config.head_dim, [times], device=weight.device),
            )
        return {
            "rotations": rotations,
            "positions_SD": plane_SD.to(weight),
            "frame_positions_TD": position_embedding_1d(config.hidden_size, times).to(weight),
        }

    def denoise(
        self,
        x_BCTHW: Tensor,
        timestep: float | Tensor,
        conditions: Conditions,
        *,
        visit: Visit | None = None,
        temporal: bool = True,
        sp: SequenceParallel | None = None,
    ) -> Tensor:
        """Predicts [B, out_channels, T, H, W] float32 for one step; the first `in_channels` are the noise.

        `timestep`: 0..999, a float or [B]. Under sequence parallelism `x_BCTHW` holds this rank's frames. `temporal`
        False leaves the temporal blocks out, as the published models do for independent images.
        """
        sp = sp or SequenceParallel()
        size = x_BCTHW.shape[2:]
        x = self.pos_embed(x_BCTHW)
        grid = (x.shape[2], x.shape[3])
        # A convolution leaves channels outermost; blocks would carry that layout on and copy it for each product.
        x = (x.flatten(2, 3) + conditions.positions_SD).contiguous()
        modulation, embedded = step_modulation(self, timestep, x)
        if not isinstance(timestep, Tensor):
            modulation = modulation[:1]  # rows of one timestep share it
        context = self._context(conditions, modulation, grid, sp)
        own = sp.own_size(conditions.num_frames)

        def run(x: Tensor) -> Tensor:
            for i, (spatial, over_time) in enumerate(zip(self.spatial_blocks, self.temporal_blocks, strict=True)):
                text = (conditions.keys_values[i], conditions.text_bias)
                x = run_block(spatial, x, context, text, visit=visit, own=own)
                if i == 0 and temporal and conditions.num_frames > 1:
                    x = x + sp.split(conditions.frame_positions_TD, 0)[:, None]
                if temporal:
                    x = run_block(over_time, x, context, None, visit=visit, own=own)
            return x

        x = run_blocks(x, run, visit=visit)
        x = project_out(self, x, embedded).unflatten(2, grid)
        return unpatchify(x, (1, self.config.patch_size, self.config.patch_size), size).float()

    def forward(
        self,
        x_BCTHW: Tensor,
        timestep_B: Tensor,
        text_BLC: Tensor,
        *,
        text_mask_BL: Tensor | None = None,
        latent_mask_BTHW: Tensor | None = None,
        temporal: bool = True,
    ) -> Tensor:
        """Predicts one step from text states, with nothing kept."""
        frames, height, width = x_BCTHW.shape[2:]
        conditions = self.prepare(
            text_BLC, size=(frames, height, width), text_mask_BL=text_mask_BL, latent_mask_BTHW=latent_mask_BTHW
        )
        return self.denoise(x_BCTHW, timestep_B, conditions, temporal=temporal)

    def _context(
        self, conditions: Conditions, modulation: Tensor, grid: tuple[int, int], sp: SequenceParallel
    ) -> BlockContext:
        bias = None
        if conditions.mask_BTS is not None:
            mine_NS = sp.split(conditions.mask_BTS, 1).flatten(0, 1)
            bias = masked_bias(mine_NS, modulation.dtype)[:, None, None]
        return BlockContext(
            modulation=modulation,
            grid=grid,
            num_frames=conditions.num_frames,
            spatial_bias=bias,
            rotations=conditions.rotations,
            sp=sp,
            kernels=self.choose_kernels(
                device=modulation.device,
                dtype=modulation.dtype,
                head_dim=self.config.head_dim,
                num_frames=conditions.num_frames,
            ),
        )
