"""What the published pipeline gives scheduler and transformer of a clip. No torch here."""

from __future__ import annotations

from pab.families.open_sora.sizes import IMAGE_FPS, nominal_size
from pab.family import ClipRequest
from pab.sampling.rectified_flow import round_to, size_shift, timesteps


def model_size(request: ClipRequest, precision: str) -> tuple[float, float]:
    """Returns nominal height and width in the precision of the model: the pipeline keeps them in tensors of its type."""
    height, width = nominal_size(request.height, request.width)
    return round_to(precision, height), round_to(precision, width)


def model_fps(request: ClipRequest) -> float:
    """Returns the frame rate that the transformer is given."""
    return float(IMAGE_FPS if request.num_frames == 1 else request.fps)


def levels(request: ClipRequest, precision: str) -> tuple[float, ...]:
    """Returns the noise level of every step in float32, shifted by the clip's size in the precision of the model."""
    height, width = nominal_size(request.height, request.width)
    shift = size_shift(height=height, width=width, num_frames=request.num_frames, precision=precision)
    return timesteps(request.num_steps, shift=shift)


def seen_levels(request: ClipRequest, precision: str) -> tuple[float, ...]:
    """Returns the noise levels as the model sees them, after the cast to its precision."""
    return tuple(round_to(precision, level) for level in levels(request, precision))
