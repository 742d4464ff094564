"""Puts demo_wan's parts together as the denoising loop drives them: the library's transformer, the demo's other parts."""

from __future__ import annotations

from pathlib import Path

import torch

from pab.broadcast.state import COND, UNCOND
from pab.families.demo.load import DemoCodec, DemoText
from pab.families.demo.weights import load_demo
from pab.families.demo_wan.config import clip_shift, demo_wan_timesteps
from pab.families.demo_wan.sites import demo_wan_sites
from pab.families.demo_wan.transformer import load_transformer
from pab.families.wan.load import SCHEDULER, WanDenoiser
from pab.family import ClipRequest, LoadRequest
from pab.library.broadcast_module import CurrentPass
from pab.library.load import BroadcastParts, install_broadcast
from pab.library.parts import ClipLevels, LibrarySampler, SchedulerSource
from pab.library.video import DiffusersVideo
from pab.weights.checkpoint import dtype_of


def load_demo_wan(path: Path, request: LoadRequest) -> DiffusersVideo:
    """Loads the transformer in `path` and the demo's text encoder and autoencoder, for inference.

    Raises CheckpointError for a file of another kind or without the library, ValueError for an unknown precision.
    """
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    transformer = load_transformer(path, device, dtype)
    demo = load_demo(device=device, dtype=dtype)
    current = CurrentPass()
    source = SchedulerSource(folder=path.parent, config=SCHEDULER, device=device)

    def sampler(clip: ClipRequest) -> LibrarySampler:
        levels = demo_wan_timesteps(clip, request.precision)
        return source.sampler(ClipLevels(planned=levels, changes={"flow_shift": clip_shift(clip)}))

    return DiffusersVideo(
        denoise=WanDenoiser(experts=(transformer,), boundary=0.0, dtype=dtype),
        current=current,
        block_stacks=install_broadcast(BroadcastParts(sites=demo_wan_sites()), transformer, current),
        encode_text=DemoText(encoder=demo.text_encoder),
        # All places of a prompt count, as in training.
        prepare_text=lambda text: text.y_BLC,
        codec=DemoCodec(autoencoder=demo.autoencoder, dtype=dtype),
        sampler=sampler,
        guided_passes=(COND, UNCOND),
    )
