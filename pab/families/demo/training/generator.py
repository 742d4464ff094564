"""Draws demo clips: anti-aliased shapes from signed distances, moving in straight lines, on any torch device.

Shape letters: B clips, T frames, H rows, W columns, S shapes. Lengths are pixels, colours -1..1 in clips.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pab.families.demo.scene import BACKGROUNDS, COLOURS, SHAPES, Scene

_RADIUS = {"small": 0.13, "medium": 0.19, "large": 0.26}  # of the shorter side
_SPEED = {"slow": 0.009, "normal": 0.017, "quick": 0.027}  # of the shorter side, per frame
_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}  # x, y
_RADIUS_JITTER = 0.06
_POINTED = 1.2  # triangles and stars reach this far beyond the radius, so that all shapes look equally big
_MARGIN = 2.0
_STAR_INNER = 0.46


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSize:
    """The size of a clip in frames and pixels."""

    num_frames: int
    height: int
    width: int

    @property
    def short_side(self) -> int:
        """Returns the smaller of height and width, pixels."""
        return min(self.height, self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Where each shape is: its radius, its centre in the first frame, its velocity in pixels per frame."""

    radius_B: Tensor
    start_B2: Tensor
    velocity_B2: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPlan:
    """All numbers that a batch of clips is painted from, in order of the scenes; small, and made on the CPU."""

    size: ClipSize
    shape_B: Tensor
    colour_B3: Tensor
    background_B3: Tensor
    motion: Motion


def plan_clips(scenes: Sequence[Scene], size: ClipSize, *, seed: int) -> ClipPlan:
    """Decides where every shape is; equal seeds decide alike."""
    return ClipPlan(
        size=size,
        shape_B=torch.tensor([SHAPES.index(scene.shape) for scene in scenes]),
        colour_B3=torch.tensor([COLOURS[scene.colour] for scene in scenes]),
        background_B3=torch.tensor([BACKGROUNDS[scene.background] for scene in scenes]),
        motion=place(scenes, size, random.Random(seed)),
    )


def paint_clips(plan: ClipPlan, device: torch.device | str = "cpu") -> Tensor:
    """Paints planned clips. Returns [B, 3, T, H, W] in -1..1, float32, on the device."""

    def moved(values: Tensor) -> Tensor:
        return values.to(device, non_blocking=True)

    frames_T1 = torch.arange(plan.size.num_frames)[:, None]
    centre_BT2 = moved(plan.motion.start_B2[:, None] + plan.motion.velocity_B2[:, None] * frames_T1)
    distance_BTHW = _signed_distance(moved(plan.shape_B), moved(plan.motion.radius_B)[:, None], centre_BT2, plan.size)
    alpha_B1THW = coverage(distance_BTHW)[:, None]
    foreground = moved(plan.colour_B3)[:, :, None, None, None]
    background = moved(plan.background_B3)[:, :, None, None, None]
    return (background + (foreground - background) * alpha_B1THW) * 2 - 1


def draw_clips(scenes: Sequence[Scene], size: ClipSize, *, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Draws one clip per scene. Returns [B, 3, T, H, W] in -1..1, float32; equal seeds draw equal clips."""
    return paint_clips(plan_clips(scenes, size, seed=seed), device)


def place(scenes: Sequence[Scene], size: ClipSize, rng: random.Random) -> Motion:
    """Chooses radius, start and velocity of each scene so that the whole shape stays inside the frame."""
    rows = [_place_one(scene, size, rng) for scene in scenes]
    return Motion(
        radius_B=torch.tensor([row[0] for row in rows]),
        start_B2=torch.tensor([row[1] for row in rows]),
        velocity_B2=torch.tensor([row[2] for row in rows]),
    )


def _place_one(
    scene: Scene, size: ClipSize, rng: random.Random
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    radius = _RADIUS[scene.size] * size.short_side * rng.uniform(1 - _RADIUS_JITTER, 1 + _RADIUS_JITTER)
    edge = radius * _POINTED + _MARGIN
    moves = max(size.num_frames - 1, 1)
    start, velocity = [], []
    for direction, length in zip(_STEP[scene.direction], (size.width, size.height), strict=True):
        room = max(length - 2 * edge, 0.0)
        # A long or small clip has too little room for the speed: the shape then crosses all the room there is.
        travel = min(_SPEED[scene.speed] * size.short_side * moves, room) * direction
        first = edge + rng.uniform(max(-travel, 0.0), room - max(travel, 0.0)) if room else length / 2
        start.append(first)
        velocity.append(travel / moves)
    return radius, (start[0], start[1]), (velocity[0], velocity[1])


def coverage(distance: Tensor) -> Tensor:
    """Turns a signed distance in pixels into the covered part of each pixel, 0..1."""
    return (0.5 - distance).clamp(0, 1)


def unit_areas() -> dict[str, float]:
    """Returns the area of each shape of radius 1."""
    inner = _STAR_INNER * _POINTED
    return {
        "circle": math.pi,
        "square": (2 * 0.88) ** 2,
        "triangle": 3 * math.sqrt(3) / 4 * _POINTED**2,
        "star": 5 * _POINTED * inner * math.sin(math.pi / 5),
        "ring": math.pi * (1 - 0.5**2),
    }


def shape_distances(radius_BT: Tensor, centre_BT2: Tensor, size: ClipSize, shape: str) -> Tensor:
    """Returns the signed distance [B, T, H, W] in pixels to one shape, negative inside."""
    return _DISTANCES[shape](*_offsets(centre_BT2, size), radius_BT[..., None, None])


def _signed_distance(shape_B: Tensor, radius_BT: Tensor, centre_BT2: Tensor, size: ClipSize) -> Tensor:
    x, y = _offsets(centre_BT2, size)
    radius = radius_BT[..., None, None]
    chosen = shape_B[:, None, None, None]
    distance = _DISTANCES[SHAPES[0]](x, y, radius)
    for index, shape in enumerate(SHAPES[1:], start=1):
        distance = torch.where(chosen == index, _DISTANCES[shape](x, y, radius), distance)
    return distance


def _offsets(centre_BT2: Tensor, size: ClipSize) -> tuple[Tensor, Tensor]:
    rows = torch.arange(size.height, device=centre_BT2.device) + 0.5
    columns = torch.arange(size.width, device=centre_BT2.device) + 0.5
    x = columns - centre_BT2[..., 0, None, None]
    y = rows[:, None] - centre_BT2[..., 1, None, None]
    return torch.broadcast_tensors(x, y)


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.88 * radius


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    inner = 0.5 * _POINTED * radius
    return torch.maximum(y, x.abs() * (math.sqrt(3) / 2) - y / 2) - inner


def _star(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    folded = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    length = torch.hypot(x, y)
    # The edge from an outer point (tip, 0) to the inner corner beside it, in the folded sector.
    corner_x, corner_y = _STAR_INNER * math.cos(sector / 2), _STAR_INNER * math.sin(sector / 2)
    edge = math.hypot(1 - corner_x, corner_y)
    normal_x, normal_y = corner_y / edge, (1 - corner_x) / edge
    tip = _POINTED * radius
    return (length * torch.cos(folded) - tip) * normal_x + length * torch.sin(folded) * normal_y


def _ring(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.75 * radius).abs() - 0.25 * radius


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "ring": _ring}
