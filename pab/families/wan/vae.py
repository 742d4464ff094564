"""Wan's decoder as the diffusers library has it, frame by frame, and how it is made faster on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pab.kernels import pixel_norm
from pab.library.vae import TiledCodec, open_codec


def wan_codec(vae: Any, _dtype: torch.dtype) -> TiledCodec:
    """Returns the decoder of a loaded VAE."""
    patch = vae.config.patch_size or 1
    mean, std = (
        torch.tensor(values, device=vae.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return open_codec(
        vae,
        strides=(vae.config.scale_factor_temporal, vae.config.scale_factor_spatial // patch),
        patch=patch,
        channels=vae.config.z_dim,
        unscale=lambda latents, _request: latents / (1.0 / std) + mean,
        decode=lambda _index, tile, _request: decode_tile(vae, tile.to(vae.post_quant_conv.weight.dtype)),
        speed_up=lambda: speed_up(vae),
    )


def decode_tile(vae: Any, tile_BCTHW: Tensor) -> Tensor:
    """Decodes latent frames one by one, each with what the ones before left in the VAE.

    As the library's own `decode` does, but for cutting off what is beyond the range of pixels, which comes after fading.
    """
    vae.clear_cache()
    latents = vae.post_quant_conv(tile_BCTHW)
    frames = []
    for at in range(latents.shape[2]):
        vae._conv_idx = [0]
        frame = latents[:, :, at : at + 1]
        frames.append(vae.decoder(frame, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=at == 0))
    vae.clear_cache()
    return torch.cat(frames, dim=2)


class PixelNorm(nn.Module):
    """Stands in for the decoder's norm, and for the SiLU that follows it."""

    def __init__(self, norm: Any, *, silu: bool) -> None:
        super().__init__()
        assert norm.channel_first, "pixels have their channels in dim 1"
        self.weight = nn.Parameter(norm.gamma.detach().flatten(), requires_grad=False)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        """Returns the norm of x [B, C, ...]."""
        return pixel_norm.fused(x, self.weight, silu=self.silu)


def speed_up(vae: Any) -> None:
    """Has the decoder compute in bfloat16 with channels last in memory, norm and SiLU as one operation."""
    decoder: Any = vae.decoder
    vae.post_quant_conv.to(torch.bfloat16)
    decoder.to(torch.bfloat16)
    for module in list(decoder.modules()):
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            form = torch.channels_last_3d if isinstance(module, nn.Conv3d) else torch.channels_last
            module.weight.data = module.weight.data.contiguous(memory_format=form)
        if hasattr(module, "nonlinearity"):
            for name in ("norm1", "norm2", "norm_out"):
                if hasattr(module, name):
                    setattr(module, name, PixelNorm(getattr(module, name), silu=True))
            module.nonlinearity = nn.Identity()
        elif hasattr(module, "to_qkv"):
            module.norm = PixelNorm(module.norm, silu=False)
