"""Gives the transformer the position of each frame in the clip, as channels beside the latents.

STDiT3's temporal attention knows only how far apart frames are. A large model learns from much data which way things
move. This small one does not learn it unless its input says which frame comes first.
"""

import torch
from torch import Tensor

FRAME_CHANNELS = 2
_SCALE = 4.0  # as large as latents and place embedding together; training did not learn to use weaker channels
_FRAMES_PER_UNIT = 8.0


def frame_positions(num_latent_frames: int, device: torch.device | None = None) -> Tensor:
    """Returns [2, T]: the place in the clip from -4 to 4, and the distance from its middle in units of 2 frames."""
    offsets = torch.arange(num_latent_frames, device=device) - (num_latent_frames - 1) / 2
    return _SCALE * torch.stack([offsets * 2 / max(num_latent_frames - 1, 1), offsets / _FRAMES_PER_UNIT])


def with_frame_positions(latents_BCTHW: Tensor, positions_CT: Tensor) -> Tensor:
    """Appends the positions as channels to latents of the same frames."""
    rows, _, _, height, width = latents_BCTHW.shape
    channels = positions_CT[None, :, :, None, None].expand(rows, -1, -1, height, width)
    return torch.cat([latents_BCTHW, channels.to(latents_BCTHW)], dim=1)
