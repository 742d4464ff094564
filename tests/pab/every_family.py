"""Every family in small: its weights, one clip of a few steps, and what ranks are asked to render."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pab.broadcast.rules import Rules, pyramid
from pab.broadcast.state import BOTH
from pab.families import find_family
from pab.families.demo.config import DEPTH
from pab.families.demo.weights import build_parts, demo_config, save_demo
from pab.families.demo_wan.transformer import load_transformer
from pab.families.tiny_weights import write_tiny_weights
from pab.family import ClipRequest, Family, LoadRequest
from pab.library.broadcast_module import BroadcastModule
from pab.library.image import GivenImage
from pab.library.video import DiffusersVideo
from pab.model import Beginning, CombinesBranches, EncodedPrompt, StepInput, VideoModel
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import Denoised, from_uncond, initial_noise, plan_for, prompt_with
from tests.pab.denoised import denoised
from tests.pab.library_world import library_module
from tests.pab.library_worlds import WORLDS

SMALL: Mapping[str, tuple[int, int, int]] = {
    "demo": (8, 32, 32),
    "demo_wan": (8, 32, 32),
    "open_sora": (17, 112, 128),
    "latte": (16, 32, 32),
    "open_sora_plan_v110": (65, 32, 32),
    "open_sora_plan_v120": (9, 32, 32),
    **{name: (world.frames, world.side, world.side) for name, world in WORLDS.items()},
}
"""Frames, height and width of a clip. Published families of the diffusers library are two layers deep, the others whole."""
EVERY_OTHER = pyramid(2, 2, 2, window=(0, 1001))
Mesh = tuple[int, int, int]
MESHES: Sequence[tuple[Mesh, tuple[int, ...]]] = (
    ((2, 2, 1), (0, 1)),
    ((2, 1, 2), (2, 3)),
    ((1, 2, 2), (0, 1, 2, 3)),
)
"""Of four ranks: dp, cfg, sp, and the ranks that render with it. Where dp is two, two ranks share a clip."""


def family(name: str) -> Family:
    return WORLDS[name].family if name in WORLDS else find_family(name)


def write_at(name: str, folder: Path) -> None:
    """Writes a family's small weights into a new folder."""
    if name in WORLDS:
        WORLDS[name].write(folder)
    elif name == "demo":
        torch.manual_seed(5)
        config = demo_config(small=True)
        config = replace(config, transformer=replace(config.transformer, depth=DEPTH))
        folder.mkdir()
        save_demo(build_parts(config), folder / "demo.safetensors")
    else:
        write_tiny_weights(name, folder)


def load(name: str, folder: Path, precision: str = "float32") -> VideoModel:
    return family(name).load(LoadRequest(weights=str(folder / name), precision=precision, device="cpu"))


def request_of(name: str) -> ClipRequest:
    frames, height, width = SMALL[name]
    return ClipRequest(
        prompt="a red circle moving left", negative_prompt=None, seed=3, num_frames=frames, height=height,
        width=width, fps=8, num_steps=4, guidance_scale=5.0,
    )  # fmt: skip


def given_of(name: str, model: VideoModel) -> Beginning | None:
    """What a clip begins with, in families whose every clip begins with an image."""
    return WORLDS[name].given(cast(DiffusersVideo, model), request_of(name)) if name in WORLDS else None


def render(
    name: str,
    model: VideoModel,
    rules: Rules = EVERY_OTHER,
    group: NodeGroup | None = None,
    precision: str = "float32",
    prompt: EncodedPrompt | None = None,
) -> Denoised:
    request, given = request_of(name), given_of(name, model)
    if prompt is not None and isinstance(given, GivenImage):
        given = replace(given, own_states=None)  # a prompt that is named has the states that are meant
    plan = plan_for(family(name), request, rules, precision)
    return denoised(model, request, plan, group=group, prompt=prompt, given=given)


class Plain:
    """A transformer that is called without a visit: nothing is kept, asked for or counted."""

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def denoise(self, *args: Any, visit: object, **more: Any) -> Tensor:
        return self._transformer.denoise(*args, visit=None, **more)


def plain_predict(name: str, model: VideoModel, folder: Path) -> Callable[[Tensor, StepInput, object, str], Tensor]:
    """What predicts for one branch with the model as it is published: no wrapper, no state, the library's own modules."""
    if name == "demo_wan":
        experts = (load_transformer(folder / name / "demo_wan.safetensors"),)
        plain = replace(model.denoise, experts=experts)
        return lambda z, given, text, branch: plain(z.repeat(1 + (branch == BOTH), 1, 1, 1, 1), given, text)
    if isinstance(model, DiffusersVideo):
        parts = [part for part in ("transformer", "transformer_2") if (folder / name / part).is_dir()]
        plain = replace(model.denoise, experts=tuple(library_module(folder / name / part) for part in parts))
        return lambda z, given, text, branch: plain(z.repeat(1 + (branch == BOTH), 1, 1, 1, 1), given, text)
    bare = replace(model, transformer=Plain(model.transformer))
    return lambda z, given, text, branch: bare.predict(z, given, text, SimpleNamespace(branch=branch), NodeGroup())


Predict = Callable[[Tensor, StepInput, object, str], Tensor]


@torch.inference_mode()
def plain_latents(name: str, model: VideoModel, folder: Path, predict: Predict | None = None) -> Tensor:
    """Final latents of the bare sampling loop over the plain model."""
    request = request_of(name)
    predict, beginning = predict or plain_predict(name, model, folder), given_of(name, model)
    prompt = prompt_with(beginning, model.encode_prompts([request])[0])
    sp = NodeGroup().sp
    scheduler = model.scheduler(request, sp) if beginning is None else beginning.scheduler(sp)
    combine = scheduler.combine if isinstance(scheduler, CombinesBranches) else from_uncond
    z = initial_noise(request, model.latent_shape(request)) * scheduler.init_noise_sigma
    z = z if beginning is None else beginning.put_into(z)
    for step, timestep in enumerate(family(name).timesteps(request, "float32")):
        x = scheduler.model_input(z, step)
        given = StepInput(
            request=request, step=step, timestep=timestep, active_frames=None,
            image_states=beginning.image_states if beginning else None,
        )  # fmt: skip
        outputs = [predict(x, given, prompt.states(branch), branch) for branch in prompt.guided_passes]
        rows = outputs if len(outputs) == 2 else outputs[0].chunk(len(outputs[0]))
        guided = rows[0] if len(rows) == 1 else combine(*rows, request.guidance_scale)
        z = scheduler.advance(z, x, guided, step)
    return z


class Watched:
    """A model that notes in which passes the modules of a site run: `ran` has (site, step, pass)."""

    def __init__(self, name: str, model: VideoModel) -> None:
        self._model = model
        self._passes = 0
        self._step: int | None = None
        self.ran: set[tuple[str, int, int]] = set()
        for site, module in site_modules(name, model):
            for part in module.modules():
                part.register_forward_pre_hook(lambda *_, site=site: self._note(site))

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._model, attribute)

    def predict(self, latents: Tensor, given: StepInput, *more: Any) -> Tensor:
        self._step, self._passes = given.step, self._passes + 1
        prediction = self._model.predict(latents, given, *more)
        self._step = None
        return prediction

    def _note(self, site: str) -> None:
        # What is made once per clip, such as keys and values of the text, belongs to no pass.
        if self._step is not None:
            self.ran.add((site, self._step, self._passes))


def traced(name: str, model: VideoModel, rules: Rules) -> tuple[Denoised, dict[str, str]]:
    """A clip, and per site a letter for each step: C where its module ran in every pass, B where it ran in none."""
    watched = Watched(name, model)
    done = render(name, watched, rules)
    runs = Counter((site, step) for site, step, _ in watched.ran)
    letters = {0: "B", done.passes: "C"}
    return done, {
        site.name: "".join(letters[runs[site.name, step]] for step in range(done.plan.num_steps))
        for site in done.plan.sites
    }


def site_modules(name: str, model: VideoModel) -> list[tuple[str, nn.Module]]:
    """The modules behind the sites. Of two experts each has its own, of which one runs at a step."""
    if isinstance(model, DiffusersVideo):
        wrappers = [m for expert in model.denoise.experts for m in expert.modules() if isinstance(m, BroadcastModule)]
        return [(wrapper.site, wrapper.module) for wrapper in wrappers]
    return [(site.name, model.transformer.get_submodule(site.name)) for site in family(name).sites]


def render_on_ranks(folder: Path) -> dict[tuple[Mesh, str], tuple[Tensor, int]]:
    """Final latents and passes a step of every family's clip on this rank's meshes.

    Models told their guidance have one branch.
    """
    done: dict[tuple[Mesh, str], tuple[Tensor, int]] = {}
    groups = {m: open_group(dp=m[0], cfg=m[1], sp=m[2], device=torch.device("cpu")) for m, _ in MESHES}
    mine = {mesh: groups[mesh] for mesh, ranks in MESHES if dist.get_rank() in ranks}
    for name in SMALL:
        model = load(name, folder)
        for mesh, group in mine.items():
            if mesh[1] == 1 or not family(name).embedded_guidance:
                rendered = render(name, model, group=group)
                done[mesh, name] = rendered.latents, rendered.passes
    return done
