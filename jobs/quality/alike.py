"""PSNR and SSIM of two clips (Wang et al. 2004, section III.B: luma, 11 x 11 Gaussian window)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_PEAK = 255.0
_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_LUMA = (0.2126, 0.7152, 0.0722)

Frames = npt.NDArray[np.uint8]


def psnr(a_THWC: Frames, b_THWC: Frames) -> float:
    """Returns the peak signal-to-noise ratio over all frames and channels in dB; infinity for equal frames.

    Raises ValueError when the shapes differ.
    """
    _check(a_THWC, b_THWC)
    # Frame by frame: the difference of a whole clip in float64 would be eight times its size.
    errors = [float(np.square(a.astype(np.float64) - b).mean()) for a, b in zip(a_THWC, b_THWC, strict=True)]
    mean_error = sum(errors) / len(errors)
    return math.inf if mean_error == 0 else 10 * math.log10(_PEAK**2 / mean_error)


def ssim(a_THWC: Frames, b_THWC: Frames) -> float:
    """Returns the structural similarity of luma, at most 1, averaged over all whole windows of all frames.

    Frames smaller than the window get a window of their size. Raises ValueError when the shapes differ.
    """
    _check(a_THWC, b_THWC)
    return sum(_frame_ssim(_luma(a), _luma(b)) for a, b in zip(a_THWC, b_THWC, strict=True)) / len(a_THWC)


def _check(a_THWC: Frames, b_THWC: Frames) -> None:
    if a_THWC.shape != b_THWC.shape or a_THWC.ndim != 4 or not a_THWC.size:
        raise ValueError(f"frames {a_THWC.shape} and {b_THWC.shape}, need one shape [T, H, W, 3] with no dim empty")


def _luma(frame_HWC: Frames) -> Tensor:
    weights = torch.tensor(_LUMA, dtype=torch.float64)
    return torch.from_numpy(np.ascontiguousarray(frame_HWC)).double() @ weights


def _gaussian(size: int) -> Tensor:
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    return weights / weights.sum()


def _frame_ssim(a: Tensor, b: Tensor) -> float:
    # Of the variances only their sum counts, so their squares are averaged together.
    mean_a, mean_b, squares, product = _windows(torch.stack([a, b, a * a + b * b, a * b]))
    variances = squares - mean_a**2 - mean_b**2
    covariance = product - mean_a * mean_b
    similar = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float((similar / ((mean_a**2 + mean_b**2 + _C1) * (variances + _C2))).mean())


def _windows(maps: Tensor) -> Tensor:
    """Returns the weighted mean of every whole window of maps [N, H, W], one axis after the other."""
    for dim in (-2, -1):
        size = maps.shape[dim]
        weights = _gaussian(min(_WINDOW, size))
        kept = size - len(weights) + 1
        # Sums of shifted maps: torch's own convolution of float64 takes ten times as long.
        means = torch.zeros(*maps.shape[:dim], kept, *maps.shape[dim:][1:], dtype=maps.dtype)
        for shift, weight in enumerate(weights.tolist()):
            means.add_(maps.narrow(dim, shift, kept), alpha=weight)
        maps = means
    return maps


def latents_alike(reference_CTHW: Tensor, other_CTHW: Tensor) -> tuple[float, float]:
    """Returns PSNR in dB (infinity for equal ones) and SSIM of latents, with the reference's range for a picture's 0..255.

    SSIM is averaged over channels and frames. Raises ValueError when the shapes differ.
    """
    if reference_CTHW.shape != other_CTHW.shape or reference_CTHW.dim() != 4:
        raise ValueError(f"latents {tuple(reference_CTHW.shape)} and {tuple(other_CTHW.shape)}, need one [C, T, H, W]")
    a, b = reference_CTHW.double(), other_CTHW.double()
    least, most = float(a.min()), float(a.max())
    scale = _PEAK / max(most - least, 1e-30)
    a, b = (a - least) * scale, (b - least) * scale
    error = float((a - b).square().mean())
    pictures = zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)
    similar = [_frame_ssim(one, two) for one, two in pictures]
    return math.inf if error == 0 else 10 * math.log10(_PEAK**2 / error), sum(similar) / len(similar)
