"""A tiny Open-Sora clip with references, on any number of ranks."""

from pathlib import Path

import torch
import torch.distributed as dist

from pab.conditioning.reference_pixels import ReferencePixels
from pab.families.open_sora.family import OPEN_SORA
from pab.families.open_sora.given_frames import GivenFrames
from pab.family import LoadRequest
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import Denoised, plan_for
from tests.pab.denoised import denoised
from tests.pab.open_sora_ranks import CLIP
from tests.pab.worlds import from_the_start


def moving_picture(num_frames: int) -> torch.Tensor:
    """Pixels [1, 3, T, 112, 128] of smooth waves in -1..1."""
    t, y, x = torch.meshgrid(
        torch.arange(num_frames) / 8, torch.linspace(0, 6, 112), torch.linspace(0, 6, 128), indexing="ij"
    )
    return torch.stack([torch.sin(x + t), torch.sin(y - t), torch.sin(x + y)])[None] * 0.8


def render_given(
    folder: Path, strategy: str, reference_frames: list[int], broadcast: str, cfg: int
) -> tuple[torch.Tensor, torch.Tensor, Denoised]:
    """The given latents, the final ones, and what the loop counted."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    group = open_group(dp=1, cfg=cfg, sp=world // cfg, device=torch.device("cpu")) if world > 1 else NodeGroup()
    model = OPEN_SORA.load(LoadRequest(weights=str(folder), precision="float32", device="cpu", clip_axis=group.clip))
    given = encoded(model, strategy, reference_frames)
    plan = plan_for(OPEN_SORA, CLIP, from_the_start(OPEN_SORA.presets[broadcast]), "float32")
    done = denoised(model, CLIP, plan, group=group, given=given)
    return given.latents_BCTHW, done.latents, done


def encoded(model, strategy: str, reference_frames: list[int]) -> GivenFrames:
    mask = OPEN_SORA.references.mask(strategy, reference_frames, CLIP.num_frames)
    pixels = []
    for at, num_frames in enumerate(reference_frames):
        taken = [source[1] for source in mask.sources if source and source[0] == at]
        span = OPEN_SORA.references.chunk_span(taken, num_frames) if taken else None
        pixels.append(
            span
            and ReferencePixels(pixels_13THW=moving_picture(num_frames)[:, :, span.start : span.stop], start=span.start)
        )
    return model.given_frames(CLIP, model.encode_references(CLIP, pixels), mask)
