"""The noise that a VAE samples a clip's encoded references with."""

from __future__ import annotations

import hashlib

import torch


def reference_generator(seed: int) -> torch.Generator:
    """Returns what draws this noise on the CPU, from the clip's seed.

    It is not the beginning of the noise that the clip's latents start from.
    """
    digest = hashlib.sha256(f"references/1\n{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
