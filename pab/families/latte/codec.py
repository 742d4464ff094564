"""Latte's decoder: an image VAE of the diffusers library, with or without a decoder that looks at neighbouring frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pab.family import ClipRequest
from pab.model import DecodedFrames
from pab.nn.video import frames_of_no_clip
from pab.parallel.mesh import NodeGroup
from pab.parallel.round_robin import round_robin_to_root
from pab.vae.pixels import pack, packed_shape, unpack

FRAMES_PER_CHUNK = 14
"""What the published pipeline decodes at once; a temporal decoder does not see across chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCodec:
    """Decodes latents chunk by chunk, the chunks dealt to the clip's ranks."""

    vae: Any

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W): a latent frame per frame, an eighth of the size."""
        return int(self.vae.config.latent_channels), num_frames, height // self._stride, width // self._stride

    @property
    def _stride(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.inference_mode()
    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns frames on the device; of no clip on ranks other than the clip's root. Collective."""
        unscaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        chunks = [chunk for clip in unscaled.transpose(1, 2) for chunk in clip.split(FRAMES_PER_CHUNK)]
        height, width = (latents.shape[dim] * self._stride for dim in (3, 4))
        shapes = [packed_shape(len(chunk), height, width) for chunk in chunks]
        like = torch.empty(0, dtype=torch.uint8, device=latents.device)
        pieces = round_robin_to_root(
            lambda index: self._decode(chunks[index]), shapes, like=like, axis=group.clip, to_cpu=False
        )
        if pieces is None:
            return frames_of_no_clip(request)
        frames, counts = unpack(torch.cat(pieces), height, width)
        by_clip = (len(latents), -1)
        return DecodedFrames(frames=frames.unflatten(0, by_clip), not_finite=counts.unflatten(0, by_clip).sum(dim=1))

    def _decode(self, frames_NCHW: Tensor) -> Tensor:
        temporal = type(self.vae).__name__ == "AutoencoderKLTemporalDecoder"
        options = {"num_frames": len(frames_NCHW)} if temporal else {}
        return pack(self.vae.decode(frames_NCHW, **options).sample)
