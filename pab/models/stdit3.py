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

from pab.compiled import any_length
from pab.kernels import attention, flash3, float8, head_norm, modulated_norm, temporal_attention
from pab.kernels.choice import PLAIN, ChooseKernels, Kernels, plain
from pab.models.layers import (
    Mlp,
    PatchEmbed3D,
    RMSNorm,
    RotaryFrequencies,
    ScalarEmbedder,
    position_embedding_2d,
    rotate_pairs,
    unpatchify,
)
from pab.parallel import SequenceParallel
from pab.plan import Site
from pab.sites import PARTS, stdit3_sites
from pab.state import Visit, handed_over, run_block

PRODUCTS = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.proj", "mlp.fc1", "mlp.fc2")
"""Of a block, the linear layers that every step runs over all tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class STDiT3Config:
    """Sizes of one STDiT3; the defaults are the published checkpoint's (1.2 billion elements)."""

    depth: int = 28
    hidden_size: int = 1152
    num_heads: int = 16
    mlp_ratio: float = 4.0
    in_channels: int = 4
    patch_size: tuple[int, int, int] = (1, 2, 2)
    input_sq_size: int = 512
    caption_channels: int = 4096
    model_max_length: int = 300
    qk_norm: bool = True
    pred_sigma: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size}, needs num_heads={self.num_heads} times an even head size"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def out_channels(self) -> int:
        """Channels predicted: velocity, and as many more (unused when sampling) with `pred_sigma`."""
        return self.in_channels * (2 if self.pred_sigma else 1)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockContext:
    """What every block of one pass shares.

    `modulation` [B, 6, D]; `modulation0` the same at timestep 0 for frames that are not generated (`active_BT` False);
    `num_frames` counts all ranks' frames. `kernels`: the fused operations that the pass uses.
    """

    modulation: Tensor
    modulation0: Tensor | None
    active_BT: Tensor | None
    rotation: tuple[Tensor, Tensor]
    num_frames: int
    sp: SequenceParallel
    kernels: Kernels = PLAIN


class SelfAttention(nn.Module):
    """Multi-head self attention with query and key norm, and rotary positions where a rotation is given."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        dim = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv: nn.Linear | float8.Float8Linear = nn.Linear(dim, 3 * dim)
        self.q_norm: nn.Module = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.proj: nn.Linear | float8.Float8Linear = nn.Linear(dim, dim)

    def over_space(self, x_BTSD: Tensor | float8.Rows8, kernels: Kernels) -> Tensor:
        """Attends over the S patches of each frame."""
        qkv_BTSE = self.qkv(x_BTSD)
        qkv = qkv_BTSE.flatten(0, 1)
        if kernels.spatial:
            out = attention.fused_self(qkv, self.num_heads, self._norm_weights())
        else:
            q, k, v = self._normed_heads(qkv, kernels)
            attend = flash3.fused if kernels.flash3 else flash3.plain
            out = attend(q, k, v).flatten(2)
        return self.proj(out.view(*qkv_BTSE.shape[:-1], -1))

    def _normed_heads(self, qkv_NLE: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries and keys, normalised, and values, each [N, L, H, C]."""
        q, k, v = qkv_NLE.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        weights = self._norm_weights()
        if kernels.head_norm and weights is not None:
            return *head_norm.fused(qkv_NLE, self.num_heads, weights), v
        return self.q_norm(q), self.k_norm(k), v

    def over_time(self, x_BTSD: Tensor | float8.Rows8, rotation: tuple[Tensor, Tensor], kernels: Kernels) -> Tensor:
        """Attends over the T frames of each patch, with rotary positions."""
        qkv = self.qkv(x_BTSD)
        if kernels.temporal:
            return self.proj(temporal_attention.fused(qkv, self.num_heads, self._norm_weights(), rotation))
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 2, 4, 1, 5)
        q, k = rotate_pairs(self.q_norm(q), rotation), rotate_pairs(self.k_norm(k), rotation)
        out_BSHTC = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out_BSHTC.permute(0, 3, 1, 2, 4).flatten(3))

    def _norm_weights(self) -> tuple[Tensor, Tensor] | None:
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm):
            return self.q_norm.weight, self.k_norm.weight
        return None


class CrossAttention(nn.Module):
    """Multi-head attention from video tokens to text tokens whose keys and values are given."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        dim = config.hidden_size
        self.num_heads = config.num_heads
        self.q_linear: nn.Linear | float8.Float8Linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj: nn.Linear | float8.Float8Linear = nn.Linear(dim, dim)

    def keys_values(self, text_BLD: Tensor) -> Tensor:
        """Returns [B, 2, heads, L, head_dim]; they do not depend on the step."""
        return self.kv_linear(text_BLD).unflatten(-1, (2, self.num_heads, -1)).permute(0, 2, 3, 1, 4)

    def forward(
        self,
        x_BTSD: Tensor | float8.Rows8,
        keys_values: Tensor,
        mask_B11L: Tensor | None,
        kernels: Kernels = PLAIN,
    ) -> Tensor:
        """Returns [B, T, S, D]."""
        attend = attention.fused_cross if kernels.cross and mask_B11L is not None else attention.plain_cross
        q_BTSD = self.q_linear(x_BTSD)
        return self.proj(attend(q_BTSD.flatten(1, 2), keys_values, mask_B11L)).view_as(q_BTSD)


class STDiT3Block(nn.Module):
    """Self attention (over space or time), cross attention and MLP; each branch is a broadcast site."""

    def __init__(self, config: STDiT3Config, *, temporal: bool, index: int) -> None:
        super().__init__()
        dim = config.hidden_size
        self.temporal = temporal
        stack = "temporal" if temporal else "spatial"
        self.sites = tuple(f"{stack}_blocks.{index}.{part}" for part in PARTS)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn = SelfAttention(config)
        self.cross_attn = CrossAttention(config)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), dim)

    def forward(
        self,
        x_BTSD: Tensor,
        context: BlockContext,
        text: tuple[Tensor, Tensor | None],
        reuse: tuple[Tensor | None, ...] = (None, None, None),
        wanted: tuple[bool, ...] = (False, False, False),
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Returns the new tokens, and per site the output to be kept where it is wanted.

        `reuse`: per site the output kept from an earlier step, or None to compute. `text`: keys and values, and mask.
        """
        table, kernels = self._modulation(context), context.kernels
        eight = isinstance(self.mlp.fc1, float8.Float8Linear)
        normed = float8.norm_rows if eight else modulated_norm.fused if kernels.norm else modulated_norm.plain
        attended, crossed, mixed = reuse
        asking: Tensor | float8.Rows8 | None = None
        if attended is None:
            # Over several ranks tokens travel, and become 8-bit behind that.
            before = modulated_norm.plain if eight and self.temporal and context.sp.size > 1 else normed
            branch = self._attend(before(x_BTSD, (), table[0], table[1])[1], context)
            if eight and crossed is None:
                x_BTSD, attended, asking = float8.gated_sum(x_BTSD, branch, table[2], keeps=wanted[0])
            else:
                attended = table[2] * branch
        addends: tuple[Tensor, ...] = () if attended is None else (attended,)
        if crossed is None:
            if asking is None:
                asking = x_BTSD = x_BTSD + addends[0]
            crossed = self.cross_attn(asking, *text, kernels)
            addends = ()
        addends = (*addends, crossed)
        if mixed is None:
            # A norm takes the sums before it into its own pass over the tokens.
            x_BTSD, x = normed(x_BTSD, addends, table[3], table[4])
            mixed = table[5] * self.mlp(x, fused=kernels.gelu)
        else:
            for addend in addends:
                x_BTSD = x_BTSD + addend
        x_BTSD = x_BTSD + mixed
        return x_BTSD, handed_over((attended, crossed, mixed), wanted)

    def _modulation(self, context: BlockContext) -> Tensor:
        """Returns [6, B, T or 1, 1, D]: shift, scale, gate of attention, then of the MLP."""
        table = (self.scale_shift_table + context.modulation).transpose(0, 1)[:, :, None, None]
        if context.active_BT is None or context.modulation0 is None:
            return table
        still = (self.scale_shift_table + context.modulation0).transpose(0, 1)[:, :, None, None]
        return torch.where(context.active_BT[:, :, None, None], table, still)

    def _attend(self, x_BTSD: Tensor | float8.Rows8, context: BlockContext) -> Tensor:
        if not self.temporal:
            return self.attn.over_space(x_BTSD, context.kernels)
        if isinstance(x_BTSD, float8.Rows8):
            return self.attn.over_time(x_BTSD, context.rotation, context.kernels)
        patches = x_BTSD.shape[2]
        x_BTSD = context.sp.switch(x_BTSD, whole_dim=1, split_dim=2, size=context.num_frames)
        x_BTSD = self.attn.over_time(x_BTSD, context.rotation, context.kernels)
        return context.sp.switch(x_BTSD, whole_dim=2, split_dim=1, size=patches)


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
        """Has the blocks multiply by 8-bit floats from now on; their weights in full precision are let go."""
        for block in self.blocks:
            float8.use_float8(block, PRODUCTS)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The broadcast sites in running order."""
        return stdit3_sites(self.config.depth)

    def prepare_text(self, y_BLC: Tensor, mask_nL: Tensor | None = None) -> Text:
        """Projects text states [B, L, caption_channels] and makes every block's keys and values.

        `mask_nL`: 1 for tokens that count (holes allowed); its n rows are tiled over the B rows, so row i serves rows i,
        n+i, ... Tokens that no row keeps are dropped.
        """
        text_BLD = self.y_embedder(y_BLC.to(self.final_layer.linear.weight))
        mask_B11L = None
        if mask_nL is not None:
            mask_nL = (mask_nL == 1).to(text_BLD.device)
            used = mask_nL.any(dim=0)
            text_BLD, mask_nL = text_BLD[:, used], mask_nL[:, used]
            if not mask_nL.all():
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
        if not isinstance(timestep, Tensor):
            timestep = torch.full((rows,), timestep, device=weight.device)
        fps = self.fps_embedder(clip.fps.to(weight.device)).repeat(rows // clip.fps.shape[0], 1)
        t_BD = self.t_embedder(timestep.to(weight.dtype)) + fps
        t0_BD = None if active_BT is None else self.t_embedder(torch.zeros_like(timestep)) + fps
        num_frames = -(-clip.num_latent_frames // self.config.patch_size[0])
        context = BlockContext(
            modulation=self.t_block(t_BD).view(rows, 6, dim),
            modulation0=None if t0_BD is None else self.t_block(t0_BD).view(rows, 6, dim),
            active_BT=active_BT,
            rotation=self.rope(num_frames),
            num_frames=num_frames,
            sp=sp,
            kernels=self.choose_kernels(
                device=x.device, dtype=x.dtype, head_dim=self.config.head_dim, num_frames=num_frames
            ),
        )
        own = sp.own_size(x.shape[1], num_frames)
        for block, keys_values in zip(self.blocks, text.keys_values, strict=True):
            x = run_block(block, x, context, (keys_values, text.mask_B11L), visit=visit, own=own)
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
    """What the transformer is told of a clip besides latents and text.

    `height`, `width`: pixels. `fps` [n]: frames per second, tiled over the rows. `num_latent_frames`: all ranks' frames.
    """

    height: float
    width: float
    fps: Tensor
    num_latent_frames: int
