"""Puts the demo model's parts together as the denoising loop drives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pab.families.demo.autoencoder import FRAMES_PER_LATENT, Autoencoder
from pab.families.demo.config import DEMO_REFERENCES
from pab.families.demo.frame_position import frame_positions
from pab.families.demo.text import TextEncoder
from pab.families.demo.weights import load_demo
from pab.families.open_sora.stdit3_video import STDiT3Video
from pab.family import ClipRequest, LoadRequest
from pab.model import DecodedFrames
from pab.nn.video import frames_of_no_clip
from pab.parallel.mesh import NodeGroup
from pab.sampling.rectified_flow import timesteps
from pab.text.states import TextStates
from pab.vae.pixels import clip_bytes, to_even_bytes
from pab.weights.checkpoint import dtype_of


def load_video_model(path: Path, request: LoadRequest) -> STDiT3Video:
    """Loads the demo model from its weights file, for inference.

    Raises FileNotFoundError if there is no such file, ValueError if it is not a demo model's or the precision is unknown.
    """
    dtype = dtype_of(request.precision)
    parts = load_demo(path, request.device, dtype)
    return STDiT3Video(
        transformer=parts.transformer,
        encode_text=DemoText(encoder=parts.text_encoder),
        codec=DemoCodec(autoencoder=parts.autoencoder, dtype=dtype),
        timesteps=lambda clip: timesteps(clip.num_steps),
        model_fps=lambda clip: float(clip.fps),
        frame_channels=frame_positions,
        references=DEMO_REFERENCES,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoText:
    """Encodes prompts with the demo model's own encoder."""

    encoder: TextEncoder

    def __call__(self, prompts: Sequence[str]) -> TextStates:
        """Returns states of all prompts, warning of words that the model does not know or cuts."""
        encoded = self.encoder.encode(prompts)
        return TextStates(y_BLC=encoded.y[:, 0], mask_BL=encoded.mask, warnings=encoded.warnings)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCodec:
    """Decodes latents on the clip's root rank with the demo autoencoder: clips are so small that one rank will do."""

    autoencoder: Autoencoder
    dtype: torch.dtype

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W) of a clip of this pixel size."""
        return self.autoencoder.latent_shape(num_frames, height, width)

    def encode_frames(self, pixels_BCTHW: Tensor, noise: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """Returns float32 latents [B, C, T/2, H/4, W/4]; an odd last frame, or an image, fills its latent frame twice."""
        odd = pixels_BCTHW.shape[2] % FRAMES_PER_LATENT
        whole = torch.cat([pixels_BCTHW, pixels_BCTHW[:, :, -1:]], dim=2) if odd else pixels_BCTHW
        return self.autoencoder.encode(whole.to(self.autoencoder.latents_mean)).float()

    def encode_end(
        self, latents: Tensor, latent_frames: int, noise: Callable[[tuple[int, ...]], Tensor]
    ) -> Tensor:  # fmt: skip
        """Encodes the whole decoded clip, whose frames all reach into their neighbours, and keeps the end."""
        video_BCTHW = self.autoencoder.decode(latents.to(self.dtype))
        return self.encode_frames(video_BCTHW, noise)[:, :, -latent_frames:]

    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns frames on the device; of no clip on ranks other than the clip's root."""
        if not group.is_clip_root:
            return frames_of_no_clip(request)
        # Not clamped, so that an infinite value is seen; the way to bytes cuts off what is beyond the range.
        frames, not_finite = clip_bytes(self.autoencoder.decode_raw(latents.to(self.dtype)), to_even_bytes)
        return DecodedFrames(frames=frames, not_finite=not_finite)
