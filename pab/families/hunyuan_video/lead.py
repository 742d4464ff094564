"""The frames before a clip's first, which HunyuanVideo's first model of image to video renders and leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pab.family import ClipRequest
from pab.library.vae import TiledCodec
from pab.model import DecodedFrames
from pab.nn.video import frames_of_no_clip
from pab.parallel.mesh import NodeGroup
from pab.vae.pixels import clip_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutLead:
    """A `LatentCodec` of clips whose latents show `lead_frames` more, which are decoded and left out."""

    codec: TiledCodec
    lead_frames: int

    def use_fast(self) -> None:
        """Has videos decoded faster from now on."""
        self.codec.use_fast()

    def compiled_parts(self) -> Sequence[nn.Module]:
        """Returns what of the fast decoder compiles."""
        return self.codec.compiled_parts()

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W)."""
        return self.codec.latent_shape(num_frames + self.lead_frames, height, width)

    @torch.inference_mode()
    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns frames on the device; of no clip on ranks other than the clip's root. Collective."""
        pixels_BCTHW = self.codec.pixels(latents, request, group.clip)
        if pixels_BCTHW is None:
            return frames_of_no_clip(request)
        frames, not_finite = clip_bytes(pixels_BCTHW[:, :, self.lead_frames :])
        return DecodedFrames(frames=frames, not_finite=not_finite, pieces=self.codec.way.pieces)
