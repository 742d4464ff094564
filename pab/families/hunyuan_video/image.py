"""The image that a clip of HunyuanVideo begins with: its latents, and the text, whose encoder sees it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.conditioning.reference_pixels import ReferenceImage
from pab.families.hunyuan_video.config import TOKEN_REPLACE, ImageWay, hunyuan_video_latent_frames
from pab.families.hunyuan_video.image_text import open_hunyuan_image_text
from pab.family import ClipRequest, LoadRequest
from pab.library.image import EncodeImage, ImageCondition, clip_pixels

NOISE_SHARE = 0.999
"""Of the latents that a clip begins from; the rest is the image's, in every frame."""


def open_hunyuan_image(
    way: ImageWay, root: Path, request: LoadRequest, vae: Any, dtype: torch.dtype, *, two_branches: bool
) -> EncodeImage:
    """Opens what encodes the image of a clip, and its text with it. `two_branches`: whether clips are guided by two.

    Raises CheckpointError naming files.
    """
    device = torch.device(request.device)
    read = open_hunyuan_image_text(way, root, request)

    def encode(clip: ClipRequest, image: ReferenceImage) -> ImageCondition:
        pixels = clip_pixels(image, clip.height, clip.width, device)[:, :, None].to(dtype)
        first: Tensor = vae.encode(pixels).latent_dist.mode().float() * vae.config.scaling_factor
        texts = read.with_image(clip, image, guided=two_branches and clip.guidance_scale != 1.0)
        return ImageCondition(
            first_BCTHW=first if way == TOKEN_REPLACE else None,
            channels_BCTHW=None if way == TOKEN_REPLACE else _beside(first, clip.num_frames + way.lead_frames),
            mixed_BCTHW=first,
            noise_share=NOISE_SHARE,
            texts=texts,
        )

    return encode


def _beside(first_BCTHW: Tensor, num_frames: int) -> Tensor:
    """Returns the image's latents with zeros for all later frames, then a channel that says which frame is given."""
    batch, channels, _, height, width = first_BCTHW.shape
    beside = first_BCTHW.new_zeros(batch, channels + 1, hunyuan_video_latent_frames(num_frames), height, width)
    beside[:, :channels, :1], beside[:, channels, 0] = first_BCTHW, 1
    return beside
