"""Group norm with SiLU over pictures whose channels lie last in memory, as decoders have it between convolutions.

Three passes that a decoder combines as it needs them: the moments of a tensor; a residual sum with its moments, so that the
sum is not read again; and the norm with SiLU, which may write a frame to several places, for convolutions over time. A
convolution's bias is a `shift` here, so that it needs no pass of its own. Each has a twin in plain torch, used on a CPU.

Shape letters: N pictures (frames of all clips, one clip's after the other), C channels, H, W, G groups, P parts of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """The weights of a group norm; `weight` and `bias` [C]."""

    weight: Tensor
    bias: Tensor
    groups: int
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean, and sum of squared deviations from it, of each part of each clip: float32 [clips, 2, P, G].

    `rows_per_part`: places (frames, height and width) of each part of a clip, the last of which may be shorter.
    """

    parts: Tensor
    rows_per_part: int

    @property
    def clips(self) -> int:
        """Over how many clips the frames are spread."""
        return self.parts.shape[0]


def moments(x_NCHW: Tensor, *, groups: int, clips: int, shift: Tensor | None = None) -> Moments:
    """Returns the moments of x + shift. `shift` [C]: for every place alike. A clip's frames are normed together."""
    if _on_gpu(x_NCHW, groups):
        from pab.kernels.gpu import group_norm as gpu

        _, parts, rows = gpu.moments(x_NCHW, None, groups=groups, clips=clips, shift=shift)
        return Moments(parts=parts, rows_per_part=rows)
    return _plain_moments(x_NCHW, groups, clips, shift)


def sum_and_moments(
    x_NCHW: Tensor, y_NCHW: Tensor, *, groups: int, clips: int, shift: Tensor | None = None
) -> tuple[Tensor, Moments]:
    """Returns x + y + shift, rounded once, and the moments of this sum."""
    if _on_gpu(x_NCHW, groups):
        from pab.kernels.gpu import group_norm as gpu

        total, parts, rows = gpu.moments(x_NCHW, y_NCHW, groups=groups, clips=clips, shift=shift)
        return total, Moments(parts=parts, rows_per_part=rows)
    total = (_shifted(x_NCHW, shift) + y_NCHW.float()).to(x_NCHW.dtype)
    return total, _plain_moments(total, groups, clips, None)


def normed(
    x_NCHW: Tensor, found: Moments, norm: Norm, *, silu: bool = True, taps: int = 1, shift: Tensor | None = None
) -> Tensor:
    """Returns the norm of x + shift, whose moments were found, and with `silu` its SiLU; computed in float32.

    With `taps` a frame's channels come behind those of the frames before it: [N, taps * C, H, W], the earliest first, zeros
    before a clip's first frame. A causal convolution over `taps` frames is then one of single frames.
    """
    if _on_gpu(x_NCHW, norm.groups):
        from pab.kernels.gpu import group_norm as gpu

        return gpu.normed(x_NCHW, found, norm, silu=silu, taps=taps, shift=shift)
    wide = _shifted(x_NCHW, shift)
    clips = wide.unflatten(0, (found.clips, -1)).transpose(1, 2)
    clips = F.group_norm(clips, norm.groups, norm.weight.float(), norm.bias.float(), norm.eps)
    wide = (F.silu(clips) if silu else clips).to(x_NCHW.dtype).transpose(1, 2).flatten(0, 1)
    return with_frames_before(wide.contiguous(memory_format=torch.channels_last), taps=taps, clips=found.clips)


def with_frames_before(x_NCHW: Tensor, *, taps: int, clips: int) -> Tensor:
    """Returns [N, taps * C, H, W], channels last: each frame's channels behind those of the frames before it, as `normed`."""
    if taps == 1:
        return x_NCHW
    # [clips, T, H, W, C]: joined along the last dim, nothing is laid out anew.
    frames = x_NCHW.permute(0, 2, 3, 1).unflatten(0, (clips, -1))
    count = frames.shape[1]
    padded = F.pad(frames, [0, 0, 0, 0, 0, 0, taps - 1, 0])
    joined = torch.cat([padded[:, tap : tap + count] for tap in range(taps)], dim=-1)
    return joined.flatten(0, 1).permute(0, 3, 1, 2)


def _on_gpu(x_NCHW: Tensor, groups: int) -> bool:
    channels = x_NCHW.shape[1]
    return x_NCHW.is_cuda and channels & (channels - 1) == 0 and groups & (groups - 1) == 0


def _shifted(x_NCHW: Tensor, shift: Tensor | None) -> Tensor:
    return x_NCHW.float() if shift is None else x_NCHW.float() + shift.float().view(-1, 1, 1)


def _plain_moments(x_NCHW: Tensor, groups: int, clips: int, shift: Tensor | None) -> Moments:
    places = _shifted(x_NCHW, shift).unflatten(0, (clips, -1)).unflatten(2, (groups, -1)).transpose(1, 2).flatten(2)
    deviation, mean = torch.var_mean(places, dim=2, correction=0)
    rows = x_NCHW.shape[0] // clips * x_NCHW.shape[2] * x_NCHW.shape[3]
    parts = torch.stack([mean, deviation * places.shape[2]], dim=1)[:, :, None]
    return Moments(parts=parts, rows_per_part=rows)
