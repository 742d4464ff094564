"""Small weights with one NaN in a bias of the decoder, and what ranks decode of which one has such weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from pab.model import DecodedFrames, VideoModel
from pab.parallel.mesh import NodeGroup, open_group
from tests.pab.every_family import family, load, request_of
from tests.pab.vae_tiles import SIZES, WORLDS, latents_of, small_codec

LAST_BIASES = ("*decoder*conv_out*bias", "autoencoder.decoder.?.bias")
"""Of the layer that makes pixels; the second is the demo's, whose last one counts."""


def poison(folder: Path, name: str, to: Path, value: float = float("nan")) -> Path:
    """Copies a family's folder to `to`, with one value of a bias of its decoder changed; returns `to`."""
    shutil.copytree(folder / name, to / name)
    poison_file(to / name / ("demo.safetensors" if name == "demo" else "vae/model.safetensors"), value)
    return to


def poison_file(file: Path, value: float = float("nan")) -> None:
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
        tensors = {key: stream.get_tensor(key).clone() for key in stream.keys()}  # noqa: SIM118
    biases = [key for key in tensors if any(fnmatch(key, pattern) for pattern in LAST_BIASES)]
    bias = sorted(key for key in biases if "temporal_vae" not in key)[-1]
    tensors[bias][0] = value
    save_file(tensors, file, metadata=metadata)


@torch.inference_mode()
def decoded(name: str, model: VideoModel, group: NodeGroup | None = None) -> DecodedFrames:
    """What a model decodes of random latents, of two clips where it renders batches."""
    request = request_of(name)
    latents = torch.randn(
        min(2, family(name).max_batch), *model.latent_shape(request), generator=torch.Generator().manual_seed(1)
    )
    return model.decode(latents, request, group or NodeGroup())


def counts_on_ranks(folder: Path, poisoned: Path) -> Mapping[str, list[int]]:
    """Counts that come of pieces: of micro batches, chunks and tiles. Rank 1 alone has the poisoned weights."""
    group = open_group(dp=1, cfg=1, sp=2, device=torch.device("cpu"))
    mine = poisoned if dist.get_rank() else folder
    found = {name: decoded(name, load(name, mine), group) for name in ("open_sora", "latte")}
    frames, height, width = SIZES["wan"]
    codec, request = small_codec(mine, "wan"), WORLDS["wan"].clip(num_frames=frames, height=height, width=width)
    found["wan"] = codec.decode_frames(latents_of(codec, "wan"), replace(request, seed=0), group)
    return {name: each.not_finite.tolist() for name, each in found.items()}
