"""The image that a clip of Wan begins with: its latents, and what the CLIP image encoder of Wan 2.1 makes of it.

Shape letters: N tokens of the image encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pab.conditioning.reference_pixels import ReferenceImage
from pab.families.wan.config import FRAME_STRIDE, WanModel, latent_frames
from pab.families.wan.vae import latent_statistics
from pab.family import ClipRequest, LoadRequest
from pab.library.image import EncodeImage, ImageCondition, clip_pixels, clip_processor
from pab.text.text_encoders import compute_positions, read_encoder_config, transformers_library
from pab.weights.checkpoint import load_module, read_tensors

READ_STATES = -2
"""Of the image encoder's states, those before its last layer."""


def open_wan_image(root: Path, request: LoadRequest, vae: Any, dtype: torch.dtype, *, model: WanModel) -> EncodeImage:
    """Opens what encodes the image of a clip. Raises CheckpointError naming files, keys and values."""
    device = torch.device(request.device)
    if not model.from_image:
        return lambda clip, image: ImageCondition(
            first_BCTHW=_latents(vae, clip_pixels(image, clip.height, clip.width, device)[:, :, None], dtype)
        )
    encoder = open_image_encoder(root, device) if model.reads_image else None

    def encode(clip: ClipRequest, image: ReferenceImage) -> ImageCondition:
        pixels = clip_pixels(image, clip.height, clip.width, device)[:, :, None]
        # The published pipelines encode a video that is grey behind the image.
        grey = pixels.new_zeros(*pixels.shape[:2], clip.num_frames - 1, *pixels.shape[3:])
        latents = _latents(vae, torch.cat([pixels, grey], dim=2), dtype)
        mask = latents.new_zeros(1, FRAME_STRIDE, latent_frames(clip.num_frames), *latents.shape[3:])
        mask[:, :, 0] = 1
        return ImageCondition(
            channels_BCTHW=torch.cat([mask, latents], dim=1), states_BNC=None if encoder is None else encoder(image)
        )

    return encode


def _latents(vae: Any, pixels_13THW: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns normalised latents [1, C, t, h, w] float32: the most likely ones, nothing is drawn."""
    mean, std = latent_statistics(vae)
    latents: Tensor = vae.encode(pixels_13THW.to(dtype)).latent_dist.mode().float()
    return (latents - mean) * (1.0 / std)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEncoder:
    """CLIP's image half in float32, as the library's documentation recommends. Between images it lies on the host."""

    encoder: Any
    prepare: Callable[[ReferenceImage], Tensor]
    device: torch.device

    def __call__(self, image: ReferenceImage) -> Tensor:
        """Returns states [1, N, C] float32 of the middle square of an image, on the device."""
        pixels = self.prepare(image)
        self.encoder.to(self.device)
        states: Tensor = self.encoder(pixel_values=pixels.to(self.device), output_hidden_states=True).hidden_states[
            READ_STATES
        ]
        self.encoder.to("cpu")
        return states


def open_image_encoder(root: Path, device: torch.device) -> ImageEncoder:
    """Loads the encoder, and the preparations that lie beside it. Raises CheckpointError."""
    folder = root / "image_encoder"
    config = read_encoder_config(folder, "CLIPVisionConfig")

    def build() -> nn.Module:
        module: nn.Module = transformers_library().CLIPVisionModel(config)
        compute_positions(module)
        return module

    with torch.device("meta"):
        expected = build().state_dict()
    encoder = load_module(
        build,
        _as_named(read_tensors(folder), expected),
        what=f"CLIP's image encoder in {folder}",
        dtype=torch.float32,
        device="cpu",
        surplus_ok=("*position_ids",),
    )
    return ImageEncoder(encoder=encoder, prepare=clip_processor(root), device=device)


_PREFIX = "vision_model."


def _as_named(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors under the names of the installed library: its releases differ by a prefix."""
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in expected) else ""
    return {prefix + key.removeprefix(_PREFIX): value for key, value in tensors.items()}
