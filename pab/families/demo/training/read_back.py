"""Reads shape, colour, background and direction back from the pixels of a clip, with no knowledge of its prompt.

Shape letters: B clips, T frames, H rows, W columns.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pab.families.demo.scene import BACKGROUNDS, COLOURS, SHAPES
from pab.families.demo.training.generator import ClipSize, coverage, shape_distances, unit_areas

READ_ATTRIBUTES = ("shape", "colour", "background", "direction")
NOTHING = "nothing"

_BORDER = 2
_LEAST_CONTRAST = 0.25  # a shape differs from its background by more than this, colours counted 0..1
_LEAST_TRAVEL = 0.028  # of the shorter side over the clip; the slowest motion of 8 frames covers 0.063
_LEAST_OVERLAP = 0.6  # of the best fitting shape; a blob that fits none so well is no shape


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadScene:
    """What the pixels show. An attribute that cannot be told is "nothing"."""

    shape: str
    colour: str
    background: str
    direction: str
    overlap: float
    """How well the shape fits the drawn one: intersection over union, 0..1."""


def read_scenes(video_BCTHW: Tensor) -> list[ReadScene]:
    """Reads every clip of [B, 3, T, H, W] in -1..1."""
    return [_read_one(clip) for clip in ((video_BCTHW.float() + 1) / 2).clamp(0, 1)]


def _read_one(clip_CTHW: Tensor) -> ReadScene:
    background = _border_colour(clip_CTHW)
    background_name = _nearest(background, BACKGROUNDS)
    contrast_THW = (clip_CTHW - background[:, None, None, None]).norm(dim=0)
    reference = contrast_THW.flatten().quantile(0.99)
    if reference < _LEAST_CONTRAST:
        return ReadScene(shape=NOTHING, colour=NOTHING, background=background_name, direction=NOTHING, overlap=0.0)
    colour = clip_CTHW[:, contrast_THW > 0.8 * reference].median(dim=1).values
    alpha_THW = _alpha(clip_CTHW, colour, background)
    centre_T2 = _centres(alpha_THW)
    shape, overlap = _best_shape(alpha_THW, centre_T2)
    return ReadScene(
        shape=shape if overlap >= _LEAST_OVERLAP else NOTHING,
        colour=_nearest(colour, COLOURS),
        background=background_name,
        direction=_direction(centre_T2, min(alpha_THW.shape[1:])),
        overlap=overlap,
    )


def _border_colour(clip_CTHW: Tensor) -> Tensor:
    rows = torch.cat([clip_CTHW[:, :, :_BORDER], clip_CTHW[:, :, -_BORDER:]], dim=2).flatten(1)
    columns = torch.cat([clip_CTHW[..., :_BORDER], clip_CTHW[..., -_BORDER:]], dim=3).flatten(1)
    return torch.cat([rows, columns], dim=1).median(dim=1).values


def _nearest(colour: Tensor, palette: Mapping[str, tuple[float, float, float]]) -> str:
    rgb: list[float] = colour.tolist()
    return min(palette, key=lambda name: math.dist(rgb, palette[name]))


def _alpha(clip_CTHW: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    axis = colour - background
    alpha = torch.einsum("cthw,c->thw", clip_CTHW - background[:, None, None, None], axis) / axis.square().sum()
    # Faint noise far from the shape would pull the centre of mass.
    return torch.where(alpha < 0.2, 0.0, alpha.clamp(0, 1))


def _centres(alpha_THW: Tensor) -> Tensor:
    _, height, width = alpha_THW.shape
    mass_T = alpha_THW.sum(dim=(1, 2)).clamp(min=1e-6)
    x_T = (alpha_THW.sum(dim=1) * (torch.arange(width, device=alpha_THW.device) + 0.5)).sum(dim=1) / mass_T
    y_T = (alpha_THW.sum(dim=2) * (torch.arange(height, device=alpha_THW.device) + 0.5)).sum(dim=1) / mass_T
    return torch.stack([x_T, y_T], dim=1)


def _direction(centre_T2: Tensor, short_side: int) -> str:
    # The slope of a least-squares line through the centres, times the length of the clip.
    frames = torch.arange(len(centre_T2), device=centre_T2.device) - (len(centre_T2) - 1) / 2
    slope_2 = (frames[:, None] * centre_T2).sum(dim=0) / frames.square().sum()
    x, y = (slope_2 * (len(centre_T2) - 1)).tolist()
    if max(abs(x), abs(y)) < _LEAST_TRAVEL * short_side:
        return "still"
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def _best_shape(alpha_THW: Tensor, centre_T2: Tensor) -> tuple[str, float]:
    size = ClipSize(num_frames=alpha_THW.shape[0], height=alpha_THW.shape[1], width=alpha_THW.shape[2])
    area = alpha_THW.sum(dim=(1, 2)).mean()
    overlaps = {}
    for shape in SHAPES:
        radius_T = (area / unit_areas()[shape]).sqrt().expand(1, size.num_frames)
        drawn_THW = coverage(shape_distances(radius_T, centre_T2[None], size, shape))[0]
        both, either = torch.minimum(drawn_THW, alpha_THW).sum(), torch.maximum(drawn_THW, alpha_THW).sum()
        overlaps[shape] = float(both / either)
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best, overlaps[best]
