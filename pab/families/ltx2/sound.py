"""LTX-2's sound: from latents to a spectrogram to samples. It is small, and is decoded in float32 on the clip's root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.families.ltx2.config import SOUND_BINS, SOUND_CHANNELS
from pab.families.ltx2.text import LIBRARY_MODULE
from pab.library.parts import load_part
from pab.model import Sound

_VAE = {
    "_class_name": "AutoencoderKLLTX2Audio",
    "latent_channels": SOUND_CHANNELS,
    "sample_rate": 16000,
    "mel_hop_length": 160,
    "mel_bins": 4 * SOUND_BINS,
}
_VOCODER = {"_class_name": "LTX2Vocoder"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundDecoder:
    """Both parts, loaded."""

    vae: Any
    vocoder: Any

    def __call__(self, latents_BCLM: Tensor) -> Sound:
        """Returns the sound of clips."""
        vae = self.vae
        tokens = latents_BCLM.transpose(1, 2).flatten(2) * vae.latents_std + vae.latents_mean
        spectrogram = vae.decode(tokens.unflatten(2, (SOUND_CHANNELS, SOUND_BINS)).transpose(1, 2), return_dict=False)[
            0
        ]
        return Sound(samples=self.vocoder(spectrogram).float(), rate=int(self.vocoder.config.output_sampling_rate))


def load_sound_decoder(root: Path, device: torch.device) -> SoundDecoder:
    """Loads `audio_vae/` and `vocoder/`. Raises CheckpointError naming files, keys and values."""
    vae = load_part(root / "audio_vae", _VAE, dtype=torch.float32, device=device)
    vocoder = load_part(root / "vocoder", _VOCODER, dtype=torch.float32, device=device, module=LIBRARY_MODULE)
    return SoundDecoder(vae=vae, vocoder=vocoder)
