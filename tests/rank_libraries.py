"""What forked processes of the tests import, in one module: the server that forks them loads it once for all of them."""

import bs4
import ftfy
import pytest
import torch._dynamo
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXTransformer3DModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from google.protobuf.internal import builder
from transformers import AutoTokenizer, MT5EncoderModel, T5EncoderModel, UMT5EncoderModel

from tests import forked, ranks
from tests.jobs import world
from tests.pab import every_family, library_worlds, noise_worlds, worlds

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
    "bs4",
    "builder",
    "every_family",
    "forked",
    "ftfy",
    "library_worlds",
    "noise_worlds",
    "pytest",
    "ranks",
    "torch",
    "world",
    "worlds",
]
