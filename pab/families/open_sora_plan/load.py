"""Loads Open-Sora-Plan 1.1.0 and 1.2.0 as they are published: transformer, causal VAE and (m)T5 text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pab.families.latte.load import load_transformer
from pab.families.open_sora_plan.causal_tiles import Tiling
from pab.families.open_sora_plan.causal_vae import CausalVAE, CausalVAEConfig
from pab.families.open_sora_plan.config import DEPTH_V120, MAX_TEXT_TOKENS_V110, MAX_TEXT_TOKENS_V120
from pab.families.open_sora_plan.transformer import OpenSoraPlan, open_sora_plan_config
from pab.family import ClipRequest, LoadRequest
from pab.model import DecodedFrames
from pab.nn.noise_video import NoiseVideo, clean_texts
from pab.nn.video import frames_of_no_clip
from pab.parallel.mesh import NodeGroup
from pab.sampling.samplers import PNDM, EulerAncestral
from pab.text.t5_text import T5Text, open_t5_text
from pab.vae.pixels import clip_bytes
from pab.weights.checkpoint import checked_config, dtype_of, load_module, read_config, read_tensors
from pab.weights.folders import WeightFolders


def load_v110(folders: WeightFolders, request: LoadRequest, *, latent_frames: int) -> NoiseVideo:
    """Loads version 1.1.0, trained on `latent_frames`. Raises CheckpointError naming files and keys."""
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    return NoiseVideo(
        transformer=load_transformer(folders.transformer, dtype, device, latent_frames=latent_frames),
        encode_text=_text(folders, request, MAX_TEXT_TOKENS_V110),
        codec=CausalCodec(vae=load_vae(folders.vae, dtype, device)),
        sampler=lambda clip, _: PNDM(num_steps=clip.num_steps),
        device=device,
        negative_cut_by_prompt=True,
        prepare=clean_texts,
    )


def load_v120(folders: WeightFolders, request: LoadRequest) -> NoiseVideo:
    """Loads version 1.2.0. Raises CheckpointError naming files and keys."""
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    config = open_sora_plan_config(checked_config(folders.transformer, {"num_layers": DEPTH_V120}))
    transformer = load_module(
        lambda: OpenSoraPlan(config),
        read_tensors(folders.transformer),
        what=f"transformer in {folders.transformer}",
        dtype=dtype,
        device=device,
        surplus_ok=("pos_embed.pos_embed", "pos_embed.temp_pos_embed"),
    )
    return NoiseVideo(
        transformer=transformer,
        encode_text=_text(folders, request, MAX_TEXT_TOKENS_V120),
        codec=CausalCodec(vae=load_vae(folders.vae, dtype, device)),
        sampler=lambda clip, noise: EulerAncestral(num_steps=clip.num_steps, noise=noise),
        device=device,
        negative_cut_by_prompt=False,
        prepare=partial(clean_texts, keep_ideographs=True),
    )


def _text(folders: WeightFolders, request: LoadRequest, max_length: int) -> T5Text:
    return open_t5_text(request, folder=folders.text_encoder, tokenizer_folder=folders.tokenizer, max_length=max_length)


def load_vae(folder: Path, dtype: torch.dtype, device: torch.device) -> CausalVAE:
    """Loads the causal VAE whose layers `config.json` names."""
    config = CausalVAEConfig.from_published(read_config(folder))
    return load_module(
        lambda: CausalVAE(config),
        read_tensors(folder),
        what=f"causal VAE in {folder}",
        dtype=dtype,
        device=device,
        # The training's discriminator is published beside it.
        surplus_ok=("loss.*",),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalCodec:
    """Decodes latents with the causal VAE in overlapping tiles, dealt to the clip's ranks."""

    vae: CausalVAE

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W) of a clip of this pixel size."""
        return self.vae.latent_shape(num_frames, height, width)

    @torch.inference_mode()
    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Returns frames on the CPU; of no clip on ranks other than the clip's root. Collective."""
        pixels_BTCHW = self.vae.decode(latents, tiling=Tiling(), axis=group.clip)
        if pixels_BTCHW is None:
            return frames_of_no_clip(request)
        frames, not_finite = clip_bytes(pixels_BTCHW.transpose(1, 2))
        return DecodedFrames(frames=frames, not_finite=not_finite)
