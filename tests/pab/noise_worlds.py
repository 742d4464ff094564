"""Tiny Latte and Open-Sora-Plan models with random weights as loaded models, for tests of the loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.rules import BroadcastRules, MlpRule, pyramid
from pab.broadcast.sites import Site
from pab.families.latte.blocks import LatteConfig
from pab.families.latte.sites import latte_sites
from pab.families.latte.transformer import Latte
from pab.families.open_sora_plan.sites import open_sora_plan_sites
from pab.families.open_sora_plan.transformer import OpenSoraPlan, OpenSoraPlanConfig
from pab.family import ClipRequest
from pab.model import DecodedFrames, Scheduler
from pab.nn.noise_video import NoiseVideo
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import PLAIN_LOOP, Denoised, LoopSettings
from pab.sampling.samplers import (
    DDIM,
    PNDM,
    EulerAncestral,
    ddim_timesteps,
    euler_ancestral_timesteps,
    pndm_timesteps,
)
from tests.hashed_text import hashed_text
from tests.pab.denoised import denoised

TEXT_LENGTH, TEXT_CHANNELS = 6, 12
LATTE = LatteConfig(
    num_layers=2, num_heads=4, head_dim=8, sample_size=8, video_length=5, caption_channels=TEXT_CHANNELS
)
OPEN_SORA_PLAN = OpenSoraPlanConfig(
    num_layers=2, num_heads=3, head_dim=12, sample_size=(5, 8, 8), caption_channels=TEXT_CHANNELS
)
MLP = tuple(
    MlpRule(stack=stack, blocks=(0,), skip_count=2, position=0.5) for stack in ("spatial", "temporal")
)  # fmt: skip
PAB246 = pyramid(2, 4, 6, window=(100, 900), mlp=MLP)


@dataclass(frozen=True)
class BlockCodec:
    """Latents of every frame and an eighth of the size."""

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        return (4, num_frames, height // 8, width // 8)

    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        raise NotImplementedError


@dataclass(frozen=True)
class World:
    """One family in small."""

    build: Callable[[], nn.Module]
    sampler: Callable[[ClipRequest, Callable[[int], Tensor]], Scheduler]
    timesteps: Callable[[int], tuple[float, ...]]
    sites: tuple[Site, ...]
    cut: bool
    communicating: str
    """The kind of site that holds the all-to-alls."""

    def model(self) -> NoiseVideo:
        torch.manual_seed(11)
        return NoiseVideo(
            transformer=self.build().eval(),
            encode_text=partial(hashed_text, length=TEXT_LENGTH, channels=TEXT_CHANNELS, ends=1),
            codec=BlockCodec(),
            sampler=self.sampler,
            device=torch.device("cpu"),
            negative_cut_by_prompt=self.cut,
        )

    def plan(self, request: ClipRequest, rules: BroadcastRules = PAB246) -> BroadcastPlan:
        return make_plan(rules, self.timesteps(request.num_steps), self.sites)

    def render(
        self,
        model: NoiseVideo,
        request: ClipRequest,
        *,
        rules: BroadcastRules = PAB246,
        group: NodeGroup | None = None,
        loop: LoopSettings = PLAIN_LOOP,
    ) -> Denoised:
        return denoised(model, request, self.plan(request, rules), group=group, loop=loop)


WORLDS: Mapping[str, World] = {
    "latte": World(
        build=lambda: Latte(LATTE),
        sampler=lambda request, _: DDIM(num_steps=request.num_steps),
        timesteps=ddim_timesteps,
        sites=latte_sites(2),
        cut=True,
        communicating="temporal",
    ),
    "open_sora_plan_v110": World(
        build=lambda: Latte(LATTE),
        sampler=lambda request, _: PNDM(num_steps=request.num_steps),
        timesteps=pndm_timesteps,
        sites=latte_sites(2),
        cut=True,
        communicating="temporal",
    ),
    "open_sora_plan_v120": World(
        build=lambda: OpenSoraPlan(OPEN_SORA_PLAN),
        sampler=lambda request, noise: EulerAncestral(num_steps=request.num_steps, noise=noise),
        timesteps=euler_ancestral_timesteps,
        sites=open_sora_plan_sites(2),
        cut=False,
        communicating="spatial",
    ),
}


def clip(**changes) -> ClipRequest:
    values = {
        "prompt": "a red circle", "negative_prompt": None, "seed": 5, "num_frames": 5, "height": 48, "width": 80,
        "fps": 8, "num_steps": 10, "guidance_scale": 3.0,
    } | changes  # fmt: skip
    return ClipRequest(**values)
