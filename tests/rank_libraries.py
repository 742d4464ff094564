"""What ranks of the tests import, in one module: the server that forks them loads it once for all tests of a process."""

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXTransformer3DModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from transformers import AutoTokenizer, MT5EncoderModel, T5EncoderModel, UMT5EncoderModel

from tests import ranks
from tests.pab import library_worlds, noise_worlds, worlds

__all__ = [
    "AutoTokenizer",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLWan",
    "CogVideoXTransformer3DModel",
    "MT5EncoderModel",
    "T5EncoderModel",
    "UMT5EncoderModel",
    "UniPCMultistepScheduler",
    "WanTransformer3DModel",
    "library_worlds",
    "noise_worlds",
    "ranks",
    "worlds",
]
