"""The demo model's autoencoder: 2 frames x 4 x 4 pixels become one latent of 8 channels, and back.

Fully convolutional with a short reach in space and time, so every size that divides works. Inside, frames are folded
into the batch: N = B x T', and time is mixed by a convolution over (previous, same, next).
Shape letters: B clips, C channels, T frames, H rows, W columns.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAMES_PER_LATENT = 2
PIXELS_PER_LATENT = 4
_PATCH_CHANNELS = 3 * FRAMES_PER_LATENT * PIXELS_PER_LATENT**2


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderConfig:
    """The size of the autoencoder."""

    latent_channels: int = 8
    encoder_width: int = 96
    encoder_blocks: int = 2
    decoder_width: int = 128
    decoder_blocks: int = 3


class Autoencoder(nn.Module):
    """Encodes clips in -1..1 to latents of zero mean and unit variance per channel, and decodes them."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        """Makes an untrained autoencoder."""
        super().__init__()
        self.config = config
        encoder, decoder = config.encoder_width, config.decoder_width
        self.encoder = nn.ModuleList(
            [
                nn.Conv2d(_PATCH_CHANNELS, encoder, 1),
                *(_Block(encoder) for _ in range(config.encoder_blocks)),
                nn.Conv2d(encoder, config.latent_channels, 3, padding=1),
            ]
        )
        self.decoder = nn.ModuleList(
            [
                nn.Conv2d(config.latent_channels, decoder, 3, padding=1),
                *(_Block(decoder) for _ in range(config.decoder_blocks)),
                nn.Conv2d(decoder, _PATCH_CHANNELS, 3, padding=1),
            ]
        )
        self.register_buffer("latents_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latents_std", torch.ones(config.latent_channels))

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns (C, T', H', W') of a clip's latents. Raises ValueError for a size that does not divide."""
        for name, value, unit in (
            ("num_frames", num_frames, FRAMES_PER_LATENT),
            ("height", height, PIXELS_PER_LATENT),
            ("width", width, PIXELS_PER_LATENT),
        ):
            if value < unit or value % unit:
                raise ValueError(f"{name}={value}, the demo autoencoder needs a positive multiple of {unit}")
        return (
            self.config.latent_channels,
            num_frames // FRAMES_PER_LATENT,
            height // PIXELS_PER_LATENT,
            width // PIXELS_PER_LATENT,
        )

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Encodes clips [B, 3, T, H, W] in -1..1 to normalised latents. Raises ValueError for sizes that do not fit."""
        raw = self.encode_raw(video_BCTHW)
        return (raw - _per_channel(self.latents_mean)) / _per_channel(self.latents_std)

    def encode_raw(self, video_BCTHW: Tensor) -> Tensor:
        """Encodes clips to latents before normalisation."""
        self.latent_shape(*video_BCTHW.shape[2:])
        patches = _to_patches(video_BCTHW)
        num_frames = patches.shape[1]
        x_NCHW = patches.flatten(0, 1)
        for layer in self.encoder:
            x_NCHW = layer(x_NCHW, num_frames) if isinstance(layer, _Block) else layer(x_NCHW)
        return x_NCHW.unflatten(0, (-1, num_frames)).transpose(1, 2)

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Decodes normalised latents [B, C, T', H', W'] to clips [B, 3, T, H, W] in -1..1."""
        return self.decode_raw(latents_BCTHW).clamp(-1, 1)

    def decode_raw(self, latents_BCTHW: Tensor) -> Tensor:
        """Decodes normalised latents without clamping the pixels."""
        num_frames = latents_BCTHW.shape[2]
        x_NCHW = latents_BCTHW.transpose(1, 2).flatten(0, 1)
        for layer in self.decoder:
            x_NCHW = layer(x_NCHW, num_frames) if isinstance(layer, _Block) else layer(x_NCHW)
        return _from_patches(x_NCHW.unflatten(0, (-1, num_frames)))


class _Block(nn.Module):
    """A residual block: channel norm, 3x3 over space, then three frames over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.space = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Conv2d(3 * width, width, 1)
        nn.init.zeros_(self.time.weight)

    def forward(self, x_NCHW: Tensor, num_frames: int) -> Tensor:
        norm = torch.rsqrt(x_NCHW.float().square().mean(dim=1, keepdim=True) + 1e-6).to(x_NCHW.dtype)
        hidden = F.silu(self.space(F.silu(x_NCHW * norm * self.scale[:, None, None])))
        added: Tensor = self.time(_with_neighbours(hidden, num_frames))
        return x_NCHW + added


def _with_neighbours(x_NCHW: Tensor, num_frames: int) -> Tensor:
    # Channels of the previous, the same and the next frame side by side; zeros beyond the ends.
    x = F.pad(x_NCHW.unflatten(0, (-1, num_frames)), (0, 0, 0, 0, 0, 0, 1, 1))
    return torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], dim=2).flatten(0, 1)


def _to_patches(video_BCTHW: Tensor) -> Tensor:
    # [B, 3, T, H, W] to [B, T', (3 t h w), H', W']
    t, p = FRAMES_PER_LATENT, PIXELS_PER_LATENT
    x = video_BCTHW.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, t))
    return x.permute(0, 2, 1, 3, 5, 7, 4, 6).flatten(2, 5)


def _from_patches(patches: Tensor) -> Tensor:
    t, p = FRAMES_PER_LATENT, PIXELS_PER_LATENT
    x = patches.unflatten(2, (3, t, p, p))
    return x.permute(0, 2, 1, 3, 6, 4, 7, 5).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _per_channel(values_C: Tensor) -> Tensor:
    return values_C[:, None, None, None]
