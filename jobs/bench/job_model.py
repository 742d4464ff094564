"""Open-Sora 1.2 with random weights as a family that jobs load, and the clips of a job: for jobs whose time is measured.

Transformer and decoder have their full size, or are tiny. Text states are random too, of prompts of different lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from jobs.bench.subjects import DTYPES, open_sora_model
from manifests.clip import Clip
from pab.families.open_sora.family import OPEN_SORA
from pab.families.open_sora.load import OpenSoraCodec
from pab.families.open_sora.stdit3_blocks import STDiT3Config
from pab.families.open_sora.stdit3_video import STDiT3Video
from pab.families.open_sora.tiny import TRANSFORMER, VAE
from pab.families.open_sora.vae import OpenSoraVAE, OpenSoraVAEConfig
from pab.family import Family, LoadRequest
from pab.text.states import TextStates

FULL_SIZE, TINY_SIZE = (480, 848, 51), (64, 96, 17)
"""Height, width and frames of a clip."""


def load_random(request: LoadRequest) -> STDiT3Video:
    """Returns the model at full size with random weights."""
    return _random_model(request, STDiT3Config(), OpenSoraVAEConfig())


def load_tiny(request: LoadRequest) -> STDiT3Video:
    """Returns a tiny model of the same kind."""
    return _random_model(request, TRANSFORMER, VAE)


def find_random(name: str) -> Family:
    """Finds Open-Sora with random weights."""
    return replace(OPEN_SORA, name=name, load=load_random)


def find_tiny(name: str) -> Family:
    """Finds the tiny model."""
    return replace(OPEN_SORA, name=name, load=load_tiny)


def job_clips(count: int, size: tuple[int, int, int], num_steps: int, *, broadcast: str = "pab246") -> list[Clip]:
    """Returns clips whose prompts have 40 to 140 words."""
    height, width, num_frames = size
    return [
        Clip(
            clip_id=f"clip.{number}",
            digest=f"{number:016x}",
            prompt="word " * (40 + 37 * number % 101),
            seed=number,
            negative_prompt=None,
            model="open_sora",
            num_frames=num_frames,
            height=height,
            width=width,
            fps=24,
            num_steps=num_steps,
            guidance_scale=7.0,
            broadcast=broadcast,
        )
        for number in range(1, 1 + count)
    ]


def _random_model(request: LoadRequest, config: STDiT3Config, vae_config: OpenSoraVAEConfig) -> STDiT3Video:
    device, dtype = torch.device(request.device), DTYPES[request.precision]
    torch.manual_seed(0)  # ranks that share a clip have the same decoder
    with device:
        vae = OpenSoraVAE(vae_config)
    return replace(
        open_sora_model(config, device, request.precision, text_tokens=120),
        encode_text=lambda prompts: _random_text(prompts, config, dtype),
        codec=OpenSoraCodec(vae=vae.to(dtype).eval()),
    )


def _random_text(prompts: Sequence[str], config: STDiT3Config, dtype: torch.dtype) -> TextStates:
    # As many tokens as the prompt has words, so prompts differ in length as real ones do.
    rows = [
        torch.randn(
            config.model_max_length, config.caption_channels, generator=torch.Generator().manual_seed(len(prompt))
        )
        for prompt in prompts
    ]
    lengths = torch.tensor([len(prompt.split()) for prompt in prompts])
    mask = (torch.arange(config.model_max_length) < lengths[:, None]).long()
    return TextStates(y_BLC=torch.stack(rows).to(dtype), mask_BL=mask, warnings=((),) * len(rows))
