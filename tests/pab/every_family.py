"""Every family in small: its weights, one clip of a few steps, and what ranks are asked to render."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pab.demo.weights import build_parts, demo_config, save_demo
from pab.denoise import Denoised, denoise, initial_noise, plan_for
from pab.families import find_family
from pab.families.demo import DEPTH
from pab.family import ClipRequest, Family, LoadRequest
from pab.model import VideoModel
from pab.parallel import NodeGroup, open_group
from pab.rules import Rules, pyramid
from pab.tiny_weights import write_tiny_weights
from tests.pab.library_worlds import WORLDS

SMALL: Mapping[str, tuple[int, int, int]] = {
    "demo": (8, 32, 32),
    "open_sora": (17, 112, 128),
    "latte": (16, 32, 32),
    "open_sora_plan_v110": (65, 32, 32),
    "open_sora_plan_v120": (9, 32, 32),
    **{name: (world.frames, world.side, world.side) for name, world in WORLDS.items()},
}
"""Frames, height and width of a clip. Families of the diffusers library are two layers deep, the others as published."""
EVERY_OTHER = pyramid(2, 2, 2, window=(0, 1001))
Mesh = tuple[int, int, int]
MESHES: Mapping[int, Sequence[Mesh]] = {2: ((1, 2, 1), (1, 1, 2)), 4: ((1, 2, 2),)}
"""By number of ranks: dp, cfg, sp."""


def family(name: str) -> Family:
    return WORLDS[name].family if name in WORLDS else find_family(name)


def write(name: str, folder: Path) -> None:
    if name in WORLDS:
        WORLDS[name].write(folder / name)
    elif name == "demo":
        torch.manual_seed(5)
        config = demo_config(small=True)
        config = replace(config, transformer=replace(config.transformer, depth=DEPTH))
        (folder / name).mkdir()
        save_demo(build_parts(config), folder / name / "demo.safetensors")
    else:
        write_tiny_weights(name, folder / name)


def load(name: str, folder: Path, precision: str = "float32") -> VideoModel:
    return family(name).load(LoadRequest(weights=str(folder / name), precision=precision, device="cpu"))


def request_of(name: str) -> ClipRequest:
    frames, height, width = SMALL[name]
    return ClipRequest(
        prompt="a red circle moving left", negative_prompt=None, seed=3, num_frames=frames, height=height,
        width=width, fps=8, num_steps=4, guidance_scale=5.0,
    )  # fmt: skip


def render(
    name: str,
    model: VideoModel,
    rules: Rules = EVERY_OTHER,
    group: NodeGroup | None = None,
    precision: str = "float32",
) -> Denoised:
    request = request_of(name)
    return denoise(
        model,
        request,
        prompt=model.encode_prompts([request])[0],
        noise=initial_noise(request, model.latent_shape(request)),
        plan=plan_for(family(name), request, rules, precision),
        group=group or NodeGroup(),
    )


def render_on_ranks(folder: Path, meshes: Sequence[Mesh]) -> dict[tuple[Mesh, str], tuple[Tensor, int]]:
    """Final latents and passes a step of every family's clip on every mesh; models told their guidance have one branch."""
    done: dict[tuple[Mesh, str], tuple[Tensor, int]] = {}
    groups = {m: open_group(dp=m[0], cfg=m[1], sp=m[2], device=torch.device("cpu")) for m in meshes}
    for name in SMALL:
        model = load(name, folder)
        for mesh, group in groups.items():
            if mesh[1] == 1 or not family(name).embedded_guidance:
                rendered = render(name, model, group=group)
                done[mesh, name] = rendered.latents, rendered.passes
    return done
