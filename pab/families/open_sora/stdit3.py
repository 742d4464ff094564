"""Open-Sora 1.2's transformer (STDiT3): spatial and temporal blocks in turn, each with cross attention and an MLP.

Published checkpoints load by their own key names. Frames are split over the ranks of the sequence axis, so the only
all-to-alls stand inside the temporal attention branch, and a broadcast temporal attention skips them (BSP).

Shape letters: B guidance rows x clips, T frames (this rank's), S patches of a frame, L text tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.broadcast.sites import Site
from pab.broadcast.state import Visit, run_block, run_blocks
from pab.execution.compiled import any_length
from pab.families.open_sora.sites import stdit3_sites
from pab.families.open_sora.stdit3_blocks import PRODUCTS, BlockContext, STDiT3Block, STDiT3Config
from pab.kernels import float8, modulated_norm
from pab.kernels.choice import PLAIN, ChooseKernels, Kernels, plain
from pab.nn.layers import (
    Mlp,
    PatchEmbed3D,
    RotaryFrequencies,
    ScalarEmbedder,
    position_embedding_2d,
    unpatchify,
)
from pab.parallel.mesh import SequenceParallel


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A prompt as the blocks need it, made once per clip: keys and values of every cross attention.

    `keys_values`: per block in running order, each [B, 2, heads, L, head_dim]. `mask_B11L`: True where a token counts; None
    when all do.
    """

    keys_values: tuple[Tensor, ...]
    mask_B11L: Tensor | None

    def filled(self, length: int) -> Text:
        """Returns the same text with `length` tokens, and a mask that leaves out those that are added."""
        missing = length - self.keys_values[0].shape[3]
        mask = self.mask_B11L
        if mask is None:
            first = self.keys_values[0]
            mask = first.new_ones(first.shape[0], 1, 1, first.shape[3], dtype=torch.bool)
        # The heads of a token stay side by side, as the fused attention reads them.
        by_token = (each.permute(0, 3, 1, 2, 4) for each in self.keys_values)
        filled = (F.pad(each, (0, 0, 0, 0, 0, 0, 0, missing)).permute(0, 2, 3, 1, 4) for each in by_token)
        return Text(keys_values=tuple(filled), mask_B11L=F.pad(mask, (0, missing)))


class CaptionEmbedder(nn.Module):
    """Projects text states to the model's width; holds the null text that stands for an empty prompt."""

    y_embedding: Tensor

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        channels = config.caption_channels
        self.register_buffer("y_embedding", torch.randn(config.model_max_length, channels) / channels**0.5)
        self.y_proj = Mlp(channels, config.hidden_size, config.hidden_size)

    def forward(self, y_BLC: Tensor) -> Tensor:
        """Returns [B, L, D]."""
        return self.y_proj(y_BLC)


class FinalLayer(nn.Module):
    """Modulated norm and a linear layer from tokens to patches."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        dim = config.hidden_size
        pt, ph, pw = config.patch_size
        self.linear = nn.Linear(dim, pt * ph * pw * config.out_channels)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)

    def forward(
        self, x_BTSD: Tensor, t_BD: Tensor, t0_BD: Tensor | None, active_BT: Tensor | None, kernels: Kernels = PLAIN
    ) -> Tensor:
        """Returns [B, T, S, pt*ph*pw*C]."""
        x_BTSD = self._modulated(x_BTSD, t_BD, kernels)
        if active_BT is not None and t0_BD is not None:
            # The published model modulates given frames a second time, on top of the first.
            x_BTSD = torch.where(active_BT[:, :, None, None], x_BTSD, self._modulated(x_BTSD, t0_BD, kernels))
        return self.linear(x_BTSD)

    def _modulated(self, x_BTSD: Tensor, t_BD: Tensor, kernels: Kernels) -> Tensor:
        shift, scale = (self.scale_shift_table + t_BD[:, None]).transpose(0, 1)[:, :, None, None]
        normed = modulated_norm.fused if kernels.norm else modulated_norm.plain
        return normed(x_BTSD, (), shift, scale)[1]


class STDiT3(nn.Module):
    """The transformer. `prepare_text` once per clip, `denoise` once per step; `forward` does both."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        dim = config.hidden_size
        self.config = config
        self.rope = RotaryFrequencies(config.head_dim)
        self.x_embedder = PatchEmbed3D(config.patch_size, config.in_channels, dim)
        self.t_embedder = ScalarEmbedder(dim)
        self.fps_embedder = ScalarEmbedder(dim)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.y_embedder = CaptionEmbedder(config)
        self.spatial_blocks = nn.ModuleList(STDiT3Block(config, temporal=False, index=i) for i in range(config.depth))
        self.temporal_blocks = nn.ModuleList(STDiT3Block(config, temporal=True, index=i) for i in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.choose_kernels: ChooseKernels = plain
        """Says which fused operations a pass uses."""

    @property
    def blocks(self) -> list[STDiT3Block]:
        """All blocks in running order: spatial 0, temporal 0, spatial 1, ..."""
        pairs = zip(self.spatial_blocks, self.temporal_blocks, strict=True)
        return [block for pair in pairs for block in pair]  # type: ignore[misc]

    def use_float8(self) -> None:
        """Has the blocks multiply by 8-bit floats from now on; their weights in full precision are freed."""
        for block in self.blocks:
            float8.use_float8(block, PRODUCTS)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The broadcast sites in running order."""
        return stdit3_sites(self.config.depth)

    def prepare_text(self, y_BLC: Tensor, mask_nL: Tensor | None = None, *, several: bool = False) -> Text:
        """Projects text states [B, L, caption_channels] and makes every block's keys and values.

        `mask_nL`: 1 for tokens that count (holes allowed); its n rows are tiled over the B rows, so row i serves rows i,
        n+i, ... Tokens that no row keeps are dropped. `several`: the rows are clips, so unless no text is padded there is a
        mask, also where they happen to be of one length: a block without one is another graph.
        """
        text_BLD = self.y_embedder(y_BLC.to(self.final_layer.linear.weight))
        mask_B11L = None
        if mask_nL is not None:
            mask_nL = (mask_nL == 1).to(text_BLD.device)
            masked = several and not mask_nL.all()
            used = mask_nL.any(dim=0)
            text_BLD, mask_nL = text_BLD[:, used], mask_nL[:, used]
            if masked or not mask_nL.all():
                mask_B11L = mask_nL.repeat(text_BLD.shape[0] // mask_nL.shape[0], 1)[:, None, None]
        keys_values = (block.cross_attn.keys_values(text_BLD) for block in self.blocks)
        return Text(
            keys_values=tuple(any_length(each, 3) for each in keys_values),
            mask_B11L=None if mask_B11L is None else any_length(mask_B11L, 3),
        )

    def denoise(
        self,
        x_BCTHW: Tensor,
        timestep: float | Tensor,
        text: Text,
        *,
        clip: ClipShape,
        visit: Visit | None = None,
        active_BT: Tensor | None = None,
        sp: SequenceParallel | None = None,
    ) -> Tensor:
        """Predicts [B, out_channels, T, H, W] float32 for one step; the first `in_channels` are the velocity.

        `timestep`: 0..1000, a float or [B]. `active_BT`: False for frames that are given, not generated. Under sequence
        parallelism `x_BCTHW` and `active_BT` hold this rank's frames.
        """
        rows, _, *size = x_BCTHW.shape
        weight = self.final_layer.linear.weight
        sp = sp or SequenceParallel()
        x = self.x_embedder(x_BCTHW.to(weight.dtype))
        _, _, height, width, dim = x.shape
        # A convolution leaves channels outermost; every block would carry that layout on and copy it for each product.
        x = (x.flatten(2, 3) + self._positions(height, width, clip).to(x)).contiguous()
        # Rows of one timestep and one frame rate share their modulation.
        different = rows if isinstance(timestep, Tensor) or clip.fps.shape[0] > 1 else 1
        if not isinstance(timestep, Tensor):
            timestep = torch.full((rows,), timestep, device=weight.device)
        fps = self.fps_embedder(clip.fps.to(weight.device)).repeat(rows // clip.fps.shape[0], 1)
        t_BD = self.t_embedder(timestep.to(weight.dtype)) + fps
        t0_BD = None if active_BT is None else self.t_embedder(torch.zeros_like(timestep)) + fps
        num_frames = -(-clip.num_latent_frames // self.config.patch_size[0])
        context = BlockContext(
            modulation=self.t_block(t_BD).view(rows, 6, dim)[:different],
            modulation0=None if t0_BD is None else self.t_block(t0_BD).view(rows, 6, dim)[:different],
            active_BT=active_BT,
            rotation=self.rope(num_frames),
            num_frames=num_frames,
            sp=sp,
            kernels=self.choose_kernels(
                device=x.device, dtype=x.dtype, head_dim=self.config.head_dim, num_frames=num_frames
            ),
        )
        own = sp.own_size(num_frames)

        def run(x: Tensor) -> Tensor:
            for block, keys_values in zip(self.blocks, text.keys_values, strict=True):
                x = run_block(block, x, context, (keys_values, text.mask_B11L), visit=visit, own=own)
            return x

        x = run_blocks(x, run, visit=visit)
        x = self.final_layer(x, t_BD, t0_BD, active_BT, context.kernels).unflatten(2, (height, width))
        return unpatchify(x, self.config.patch_size, size).float()

    def forward(
        self, x_BCTHW: Tensor, timestep_B: Tensor, y_B1LC: Tensor, *, clip: ClipShape, mask_nL: Tensor | None = None,
        active_BT: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Predicts one step from text states, with nothing kept: what training and single passes use."""
        text = self.prepare_text(y_B1LC.squeeze(1), mask_nL)
        return self.denoise(x_BCTHW, timestep_B, text, clip=clip, active_BT=active_BT)

    def _positions(self, rows: int, columns: int, clip: ClipShape) -> Tensor:
        scale = (clip.height * clip.width) ** 0.5 / self.config.input_sq_size
        base_size = round((rows * columns) ** 0.5)
        return position_embedding_2d(
            self.config.hidden_size, rows, columns, scale=scale, base_size=base_size, device=self.rope.freqs.device
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """What the transformer is given of a clip besides latents and text.

    `height`, `width`: pixels. `fps` [n]: frames per second, tiled over the rows. `num_latent_frames`: all ranks' frames.
    """

    height: float
    width: float
    fps: Tensor
    num_latent_frames: int
