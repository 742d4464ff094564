"""The models that are timed: full or tiny size with random weights, or the demo model's own, and the clips they render.

Random weights take the same time as trained ones. Text states are random too: prompts are encoded before the first clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from jobs.bench.plan_files import rules_of
from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.sites import Site
from pab.families import FAMILIES
from pab.families.demo.training.check import held_out_prompts
from pab.families.latte.blocks import LatteConfig
from pab.families.latte.sites import latte_sites
from pab.families.latte.transformer import Latte
from pab.families.open_sora.levels import levels, model_fps, model_size
from pab.families.open_sora.sites import stdit3_sites
from pab.families.open_sora.sizes import latent_frames
from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_blocks import STDiT3Config
from pab.families.open_sora.stdit3_video import STDiT3Video
from pab.families.open_sora_plan.config import MAX_TEXT_TOKENS_V110
from pab.family import ClipRequest, Family, LoadRequest
from pab.model import DecodedFrames, VideoModel
from pab.nn.noise_video import NoiseVideo
from pab.parallel.mesh import NodeGroup
from pab.sampling.samplers import DDIM, PNDM
from pab.text.states import TextStates

FULL, TINY = SIZES = ("full", "tiny")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEXT_TOKENS = {FULL: 120, TINY: 12}
"""Of 120 (Latte) or 300 a model reads at most: a long prompt."""
_TINY_STDIT3 = STDiT3Config(depth=2, hidden_size=32, num_heads=2, caption_channels=32, model_max_length=48)
_TINY_LATTE = LatteConfig(num_layers=2, num_heads=2, head_dim=16, sample_size=32, caption_channels=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model on a device, and the clips it renders in turn. `decodes`: whether its videos show how good it is.

    `size`: full or tiny.
    """

    family: Family
    model: VideoModel
    sites: tuple[Site, ...]
    requests: tuple[ClipRequest, ...]
    precision: str
    device: torch.device
    decodes: bool = False
    size: str = FULL

    def facts(self) -> dict[str, object]:
        """Returns what is timed: the clip, and how large the model is that renders it."""
        clip = self.requests[0]
        blocks = (block for stack in self.model.block_stacks for block in stack)
        return {
            "clip": {
                "height": clip.height, "width": clip.width, "num_frames": clip.num_frames, "num_steps": clip.num_steps,
                "guidance_scale": clip.guidance_scale,
            },
            "block_parameters": sum(weight.numel() for block in blocks for weight in block.state_dict().values()),
            "weights": "trained" if self.decodes else "random",
            "precision": self.precision,
        }  # fmt: skip

    def plan(self, request: ClipRequest, broadcast: str) -> BroadcastPlan:
        """Returns the plan of a clip under one of the family's presets, or under a plan in a file."""
        return make_plan(rules_of(self.family, broadcast), self.family.timesteps(request, self.precision), self.sites)

    @property
    def short(self) -> ClipRequest:
        """A clip of the fewest steps, to warm up what needs no graphs."""
        return replace(self.requests[0], num_steps=max(2, self.family.limits.num_steps[0]))


def random_weights(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Returns a module whose every matrix is random, also those that training would begin at zero."""
    torch.manual_seed(0)
    with device:
        module = make()
        for parameter in module.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return module.to(dtype).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomText:
    """Stands for a text encoder: random states, of which the first `tokens` count; with `pooled` a vector of that width."""

    shape: tuple[int, int]
    tokens: int
    device: torch.device
    dtype: torch.dtype
    pooled: int | None = None

    def __call__(self, texts: Sequence[str]) -> TextStates:
        """Returns states [B, L, C], the same for the same place among the texts."""
        generator = torch.Generator().manual_seed(1)
        states = [torch.randn(self.shape, generator=generator) for _ in texts]
        mask = (torch.arange(self.shape[0]) < self.tokens).long().expand(len(texts), -1)
        return TextStates(
            y_BLC=torch.stack(states).to(self.device, self.dtype),
            mask_BL=mask.to(self.device),
            warnings=((),) * len(texts),
            pooled_BD=None if self.pooled is None else torch.ones(len(texts), self.pooled, device=self.device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentsOnly:
    """Stands for a decoder: knows the size of the latents alone. `pixels`: of a latent's side."""

    frames: Callable[[int], int]
    channels: int = 4
    pixels: int = 8

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns (C, T, H, W)."""
        return self.channels, self.frames(num_frames), height // self.pixels, width // self.pixels

    def decode_frames(self, latents: Tensor, request: ClipRequest, group: NodeGroup) -> DecodedFrames:
        """Raises NotImplementedError: random weights show nothing."""
        raise NotImplementedError("random weights are not decoded")


def request_of(family: Family, **others: int | float | str) -> ClipRequest:
    """Returns a clip of the family's defaults but for what is named."""
    usual = family.defaults
    return replace(
        ClipRequest(
            prompt="-", negative_prompt=None, seed=1, num_frames=usual.num_frames, height=usual.height,
            width=usual.width, fps=usual.fps, num_steps=usual.num_steps, guidance_scale=usual.guidance_scale,
        ),
        **others,  # type: ignore[arg-type]
    )  # fmt: skip


def precision_on(device: torch.device) -> str:
    """Returns what models are timed in: bfloat16, on a CPU float32."""
    return "bfloat16" if device.type == "cuda" else "float32"


def open_sora_model(config: STDiT3Config, device: torch.device, precision: str, *, text_tokens: int) -> STDiT3Video:
    """Returns an Open-Sora 1.2 with random weights that knows no decoder."""
    dtype = DTYPES[precision]
    transformer = random_weights(lambda: STDiT3(config), device, dtype)
    assert isinstance(transformer, STDiT3), "that is what was made"
    return STDiT3Video(
        transformer=transformer,
        encode_text=RandomText(
            shape=(config.model_max_length, config.caption_channels), tokens=text_tokens, device=device, dtype=dtype
        ),
        codec=LatentsOnly(frames=latent_frames),
        timesteps=lambda request: levels(request, precision),
        model_fps=model_fps,
        model_size=lambda request: model_size(request, precision),
    )


def _open_sora(size: str, device: torch.device, *, small: bool) -> Subject:
    family, precision = FAMILIES["open_sora"], precision_on(device)
    config = STDiT3Config() if size == FULL else _TINY_STDIT3
    others = {"num_frames": 17, "height": 144, "width": 256} if small else {}
    if size == TINY:
        others = {"num_frames": 17, "height": 64, "width": 64 if small else 96, "num_steps": 10}
    request = request_of(family, guidance_scale=7.0, **others)
    return Subject(
        family=family,
        model=open_sora_model(config, device, precision, text_tokens=TEXT_TOKENS[size]),
        sites=stdit3_sites(config.depth),
        requests=(request,),
        precision=precision,
        device=device,
    )


def _noise_subject(name: str, size: str, device: torch.device, others: Mapping[str, int]) -> Subject:
    family, precision = FAMILIES[name], precision_on(device)
    plan = name.startswith("open_sora_plan")
    config = replace(LatteConfig() if size == FULL else _TINY_LATTE, null_text=plan, video_length=17 if plan else 16)
    dtype, tokens = DTYPES[precision], MAX_TEXT_TOKENS_V110 if plan else 120
    transformer = random_weights(lambda: Latte(config), device, dtype)
    assert isinstance(transformer, Latte), "that is what was made"
    model = NoiseVideo(
        transformer=transformer,
        encode_text=RandomText(
            shape=(tokens, config.caption_channels), tokens=TEXT_TOKENS[size], device=device, dtype=dtype
        ),
        codec=LatentsOnly(frames=lambda num_frames: (num_frames - 1) // 4 + 1 if plan else num_frames),
        sampler=lambda clip, _: PNDM(num_steps=clip.num_steps) if plan else DDIM(num_steps=clip.num_steps),
        device=device,
        negative_cut_by_prompt=True,
    )
    return Subject(
        family=family,
        model=model,
        sites=latte_sites(config.num_layers),
        requests=(request_of(family, **(others if size == TINY else {})),),
        precision=precision,
        device=device,
    )


def _demo(size: str, device: torch.device) -> Subject:
    family, precision = FAMILIES["demo"], "float32"
    prompts = held_out_prompts(4 if size == FULL else 1, seed=0)
    return Subject(
        family=family,
        model=family.load(LoadRequest(weights=None, precision=precision, device=str(device))),
        sites=family.sites,
        requests=tuple(
            request_of(family, prompt=text, seed=seed, num_steps=family.defaults.num_steps if size == FULL else 10)
            for seed, (text, _) in enumerate(prompts)
        ),
        precision=precision,
        device=device,
        decodes=True,
    )


_TINY_CLIP = {"height": 64, "width": 64}
MAKERS: Mapping[str, Callable[[str, torch.device], Subject]] = {
    "open_sora": lambda size, device: _open_sora(size, device, small=False),
    "open_sora_small": lambda size, device: _open_sora(size, device, small=True),
    "latte": lambda size, device: _noise_subject("latte", size, device, _TINY_CLIP | {"num_steps": 10}),
    "open_sora_plan": lambda size, device: _noise_subject(
        "open_sora_plan_v110", size, device, _TINY_CLIP | {"num_steps": 6}
    ),
    "demo": _demo,
}
"""By group of rows, of the models that are our own."""
