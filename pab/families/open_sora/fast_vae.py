"""The decoders of Open-Sora 1.2's VAE laid out for speed: channels last from end to end, and no pass over a tensor twice.

The weights are those of the published decoders. What differs is how they are computed: norms with SiLU and residual sums in
one pass each (`pab.kernels.group_norm`), which add the bias of the convolution before them; doubling a size and the
convolution behind it as one, of four ninths of the products; a convolution over time as one of single frames, three times as
deep; attention, one head of 512 channels, by two products. Nothing is compiled.

Shape letters: N frames of all clips, one clip's after the other, C channels, H, W, O channels of a result; B, T of clips.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.families.open_sora.temporal_vae import CausalConv, TemporalDecoder, TemporalResBlock
from pab.families.open_sora.vae import OpenSoraVAE
from pab.kernels import wide_attention
from pab.kernels.group_norm import Moments, Norm, moments, normed, sum_and_moments, with_frames_before
from pab.vae.image_vae import ImageAttention, ImageDecoder, ResnetBlock, UpBlock, Upsampler

TAPS = 3
"""Frames that a convolution over time sees."""
FRAMES_AT_ONCE = 2
"""More at once are faster on one rank (4 by 2 %), but ranks share them less evenly."""


@torch.no_grad()
def use_fast(vae: OpenSoraVAE, *, frames_at_once: int = FRAMES_AT_ONCE) -> None:
    """Has a VAE decode fast from now on, on the device where it is. Its encoder stays as it is."""
    image, temporal = vae.spatial_vae.module, vae.temporal_vae
    if isinstance(image.decoder, FastImageDecoder):
        return
    image.decoder = FastImageDecoder(image.decoder)  # type: ignore[assignment]
    temporal.decoder = FastTemporalDecoder(temporal.decoder)  # type: ignore[assignment]
    vae.frames_at_once = frames_at_once


class Residual(nn.Module):
    """A residual block.

    `convs`: weights of its two convolutions. `shifts`: what is added to its input, to the first convolution's result, and to
    the sum. `taps`: frames that a convolution sees.
    """

    def __init__(
        self,
        block: ResnetBlock | TemporalResBlock,
        *,
        shortcut: Tensor | None,
        convs: tuple[Tensor, Tensor],
        shifts: tuple[Tensor | None, Tensor | None, Tensor | None],
        taps: int = 1,
    ) -> None:
        super().__init__()
        self.norms = _norm(block.norm1), _norm(block.norm2)
        self.convs, self.shifts, self.shortcut, self.taps = convs, shifts, shortcut, taps

    def forward(self, x_NCHW: Tensor, found: Moments) -> tuple[Tensor, Moments]:
        """Returns [N, O, H, W] and its moments, of an input and its moments."""
        before, between, behind = self.shifts
        groups, clips = self.norms[1].groups, found.clips
        hidden = normed(x_NCHW, found, self.norms[0], taps=self.taps, shift=before)
        hidden = F.conv2d(hidden, self.convs[0], padding=1)
        found = moments(hidden, groups=groups, clips=clips, shift=between)
        hidden = normed(hidden, found, self.norms[1], taps=self.taps, shift=between)
        hidden = F.conv2d(hidden, self.convs[1], padding=1)
        beside = x_NCHW if self.shortcut is None else F.conv2d(x_NCHW, self.shortcut)
        return sum_and_moments(hidden, beside, groups=groups, clips=clips, shift=behind)


def image_residual(block: ResnetBlock, before: Tensor | None) -> Residual:
    """Returns an image decoder's block that stands for `block`. `before`: what is missing in its input, [C]."""
    parts = [block.conv2.bias]
    if block.conv_shortcut is None:
        shortcut = None
        parts += [] if before is None else [before]
    else:
        shortcut = _last(block.conv_shortcut.weight)
        parts.append(block.conv_shortcut.bias)
        if before is not None:
            parts.append(shortcut[:, :, 0, 0].float() @ before.float())
    behind = torch.stack([part.float() for part in parts if part is not None]).sum(0)
    return Residual(
        block,
        shortcut=shortcut,
        convs=(_last(block.conv1.weight), _last(block.conv2.weight)),
        shifts=(_wide(before), _wide(block.conv1.bias), behind),
    )


class FastAttention(nn.Module):
    """Attention over the places of one image, and the sum of both with its moments."""

    def __init__(self, part: ImageAttention) -> None:
        super().__init__()
        linears = part.to_q, part.to_k, part.to_v
        self.norm = _norm(part.group_norm)
        self.weight = torch.cat([linear.weight for linear in linears])
        self.bias = torch.cat([linear.bias for linear in linears])
        out = part.to_out[0]
        assert isinstance(out, nn.Linear), "the layer behind attention is a product"
        self.out_weight, self.out_bias = out.weight, _wide(out.bias)

    def forward(self, x_NCHW: Tensor, found: Moments) -> tuple[Tensor, Moments]:
        """Returns a tensor of the input's shape, and its moments."""
        count, _, height, width = x_NCHW.shape
        tokens = normed(x_NCHW, found, self.norm, silu=False).permute(0, 2, 3, 1).reshape(count, height * width, -1)
        q, k, v = F.linear(tokens, self.weight, self.bias).chunk(3, dim=-1)
        attended = F.linear(wide_attention.fused(q, k, v), self.out_weight)
        attended = attended.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return sum_and_moments(attended, x_NCHW, groups=self.norm.groups, clips=found.clips, shift=self.out_bias)


class Doubling(nn.Module):
    """Doubles height and width, and convolves. Its bias is left to what follows."""

    def __init__(self, part: Upsampler) -> None:
        super().__init__()
        self.weight = _last(_transposed(part.conv.weight).to(part.conv.weight.dtype))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns [N, C, 2H, 2W]."""
        return F.conv_transpose2d(x_NCHW, self.weight, stride=2, padding=1)


class FastImageDecoder(nn.Module):
    """Latents to images, as `ImageDecoder` does."""

    def __init__(self, decoder: ImageDecoder) -> None:
        super().__init__()
        self.first, self.first_bias = _last(decoder.conv_in.weight), decoder.conv_in.bias
        middle = [cast(ResnetBlock, block) for block in decoder.mid_block.resnets]
        blocks: list[nn.Module] = [
            image_residual(middle[0], self.first_bias),
            FastAttention(cast(ImageAttention, decoder.mid_block.attentions[0])),
            image_residual(middle[1], None),
        ]
        self.levels = nn.ModuleList()
        self.doublings = nn.ModuleList()
        self.biases = [_wide(self.first_bias)]
        """What is missing in the input of each level."""
        before: Tensor | None = None
        for level in (cast(UpBlock, each) for each in decoder.up_blocks):
            for index, block in enumerate(level.resnets):
                blocks.append(image_residual(cast(ResnetBlock, block), None if index else before))
            self.levels.append(nn.ModuleList(blocks))
            blocks = []
            for part in level.upsamplers:
                self.doublings.append(Doubling(cast(Upsampler, part)))
                before = cast(Upsampler, part).conv.bias
                self.biases.append(_wide(before))
        self.norm = _norm(decoder.conv_norm_out)
        self.last, self.last_bias = _last(decoder.conv_out.weight), decoder.conv_out.bias

    def forward(self, z_NCHW: Tensor) -> Tensor:
        """Returns [N, 3, 8H, 8W]."""
        x = F.conv2d(z_NCHW.contiguous(memory_format=torch.channels_last), self.first, padding=1)
        for index, blocks in enumerate(self.levels):
            if index:
                x = self.doublings[index - 1](x)
            # Every image is normed alone.
            found = moments(x, groups=self.norm.groups, clips=len(x), shift=self.biases[index])
            for block in blocks:  # type: ignore[attr-defined]
                x, found = block(x, found)
        return F.conv2d(normed(x, found, self.norm), self.last, self.last_bias, padding=1)


class FastTemporalDecoder(nn.Module):
    """Temporal latents to image latents, as `TemporalDecoder` does."""

    def __init__(self, decoder: TemporalDecoder) -> None:
        super().__init__()
        self.first, self.first_bias = _deep(decoder.conv1), decoder.conv1.conv.bias
        self.levels = nn.ModuleList()
        self.doublings: list[tuple[Tensor, Tensor | None]] = []
        self.doubles: list[bool] = []
        blocks = [temporal_residual(cast(TemporalResBlock, block)) for block in decoder.res_blocks]
        for level in reversed(range(len(decoder.block_res_blocks))):
            own = cast(nn.ModuleList, decoder.block_res_blocks[level])
            blocks += [temporal_residual(cast(TemporalResBlock, block)) for block in own]
            self.levels.append(nn.ModuleList(blocks))
            blocks = []
            up = decoder.conv_blocks[level - 1] if level else None
            self.doubles.append(isinstance(up, CausalConv))
            if isinstance(up, CausalConv):
                weight, bias = _deep(up), up.conv.bias
                # Channels 2c and 2c + 1 become neighbours in time: all of the first ones before all of the second.
                order = torch.arange(len(weight), device=weight.device).view(-1, 2).t().flatten()
                self.doublings.append((_last(weight[order]), None if bias is None else bias[order]))
        self.norm = _norm(decoder.norm1)
        self.last, self.last_bias = _deep(decoder.conv_out), decoder.conv_out.conv.bias

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        """Returns [B, C, 4T, H, W]."""
        clips, groups = len(z_BCTHW), self.norm.groups
        z_NCHW = z_BCTHW.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = F.conv2d(with_frames_before(z_NCHW, taps=TAPS, clips=clips), self.first, self.first_bias, padding=1)
        found = moments(x, groups=groups, clips=clips)
        doublings = iter(self.doublings)
        for blocks, doubles in zip(self.levels, self.doubles, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x, found = block(x, found)
            if doubles:
                weight, bias = next(doublings)
                x = F.conv2d(with_frames_before(x, taps=TAPS, clips=clips), weight, bias, padding=1)
                pairs = x.permute(0, 2, 3, 1).unflatten(-1, (2, -1)).permute(0, 3, 1, 2, 4)
                x = pairs.flatten(0, 1).permute(0, 3, 1, 2)
                found = moments(x, groups=groups, clips=clips)
        hidden = normed(x, found, self.norm, taps=TAPS)
        frames = F.conv2d(hidden, self.last, self.last_bias, padding=1)
        # Laid out as what comes from another rank: what follows would round otherwise with channels last.
        return frames.unflatten(0, (clips, -1)).transpose(1, 2).contiguous()


def temporal_residual(block: TemporalResBlock) -> Residual:
    """Returns a temporal decoder's block that stands for `block`."""
    return Residual(
        block,
        shortcut=None if block.conv3 is None else _last(block.conv3.conv.weight[:, :, 0]),
        convs=(_deep(block.conv1), _deep(block.conv2)),
        shifts=(None, None, None),
        taps=TAPS,
    )


def _norm(norm: nn.GroupNorm) -> Norm:
    return Norm(weight=norm.weight, bias=norm.bias, groups=norm.num_groups, eps=norm.eps)


def _wide(bias: Tensor | None) -> Tensor | None:
    """Returns a bias in the precision in which it is added."""
    return None if bias is None else bias.detach().float()


def _last(weight: Tensor) -> Tensor:
    return weight.detach().contiguous(memory_format=torch.channels_last)


def _deep(conv: CausalConv) -> Tensor:
    """Returns the weight [O, 3 C, 3, 3] of a convolution over time, for frames with those before them in front."""
    return _last(conv.conv.weight.transpose(1, 2).flatten(1, 2))


def _transposed(weight_OCHW: Tensor) -> Tensor:
    """Returns the weight [C, O, 4, 4] of the transposed convolution that doubles height and width and convolves.

    Of a doubled picture a pixel with an even number sees the place before its own, and its own twice; one with an odd number
    its own twice, and the one after: two places of three weights, along each side.
    """
    for dim in (2, 3):
        first, middle, last = weight_OCHW.float().unbind(dim)
        weight_OCHW = torch.stack([last, middle + last, first + middle, first], dim)
    return weight_OCHW.transpose(0, 1)
