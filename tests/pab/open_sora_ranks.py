"""A tiny Open-Sora on any number of ranks."""

from pathlib import Path

import torch
import torch.distributed as dist

from pab.families.open_sora.family import OPEN_SORA
from pab.family import ClipRequest, LoadRequest
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import plan_for
from pab.text.t5_text import T5Text
from tests.pab.denoised import denoised
from tests.pab.vae_ranks import whole_axis
from tests.pab.worlds import from_the_start

CLIP = ClipRequest(
    prompt="A cat walks over a red carpet", negative_prompt=None, seed=3, num_frames=34, height=112, width=128, fps=24,
    num_steps=4, guidance_scale=7.0,
)  # fmt: skip


def render(folder: Path, request: ClipRequest, broadcast: str, cfg: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Final latents and frames of a clip."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    group = open_group(dp=1, cfg=cfg, sp=world // cfg, device=torch.device("cpu")) if world > 1 else NodeGroup()
    model = OPEN_SORA.load(LoadRequest(weights=str(folder), precision="float32", device="cpu", clip_axis=group.clip))
    plan = plan_for(OPEN_SORA, request, from_the_start(OPEN_SORA.presets[broadcast]), "float32")
    done = denoised(model, request, plan, group=group)
    return done.latents, model.decode(done.latents, request, group).frames


def t5_text(folder: Path, max_length: int = 48) -> T5Text:
    text_encoder = folder / "text_encoder"
    return T5Text(
        folder=text_encoder, tokenizer_folder=text_encoder, dtype=torch.float32, device=torch.device("cpu"),
        max_length=max_length, axis=whole_axis(),
    )  # fmt: skip


def encode_and_render(folder: Path, texts: list[str], cfg: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text states of all texts, final latents and frames of `CLIP`."""
    return t5_text(folder)(texts).y_BLC, *render(folder, CLIP, "pab246", cfg)
