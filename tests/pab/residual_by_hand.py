"""A plan whose residuals stand in, carried out by hooks at both ends of a plain model's blocks, and rendered by ranks."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.residual import StandIn
from pab.broadcast.state import BOTH
from pab.broadcast.step_rules import StepGroup, StepRules
from pab.library.video import DiffusersVideo
from pab.model import StepInput, VideoModel
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import Denoised, plan_for
from tests.pab.every_family import MESHES, Mesh, Plain, Predict, family, load, render, request_of
from tests.pab.library_world import library_module

STANDING_IN = StepRules(num_steps=4, groups=(), passes=(0, 1), residual=((2, (0.9,)), (3, ())))
"""Step 2 scales the residual of step 1, step 3 draws the line through those of steps 0 and 1."""
ALSO_SITES = StepRules(
    num_steps=4,
    groups=(StepGroup(kind="spatial", stack="spatial", compute=(0,)),),
    passes=(0, 1, 3),
    residual=((2, (1.0,)),),
)
ON_RANKS = ("demo", "latte", "open_sora_plan_v120", "wan22_a14b", "cogvideox_2b", "hunyuan_video", "ltx2")
"""Frames or patches of ours, split in the loop; one stream, two streams and two experts of the library, split in a pass."""
BY_HAND = (*ON_RANKS, "wan_14b_i2v_480p", "hunyuan_video_15_480p", "ltx")
"""Those, with given images and text of two encoders besides; the blocks of other families are one of these classes."""
_READ: Mapping[str, tuple[str, ...]] = {"ltx2": ("hidden_states", "audio_hidden_states")}
"""Of the library, the streams that a transformer reads after its blocks."""


class ByHand:
    """Takes the tokens before the first block of a plain model and after its last; at some steps puts others there."""

    def __init__(self, name: str, plan: BroadcastPlan) -> None:
        self._plan = plan
        self._names = _READ.get(name, ("hidden_states",))
        self._step, self._branch = 0, ""
        self._before: tuple[Tensor, ...] = ()
        self._residuals: dict[tuple[int, str], tuple[Tensor, ...]] = {}

    def hook(self, transformer: nn.Module) -> None:
        first, last = (self._plan.sites[i].name.rpartition(".")[0] for i in (0, -1))
        transformer.get_submodule(first).register_forward_pre_hook(self._enter, with_kwargs=True)
        transformer.get_submodule(last).register_forward_hook(self._leave)

    def at(self, step: int, branch: str) -> None:
        self._step, self._branch = step, branch

    def _enter(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = [kwargs[name] if name in kwargs else args[i] for i, name in enumerate(self._names)]
        self._before = tuple(found)

    def _leave(self, _block: nn.Module, _args: Any, output: Any) -> Any:
        streams = (output,) if isinstance(output, Tensor) else tuple(output)
        stand_in: StandIn | None = self._plan.stand_ins.get(self._step)
        if stand_in is None:
            self._residuals[self._step, self._branch] = tuple(
                after - before for after, before in zip(streams, self._before, strict=False)
            )
            return output
        tokens = list(self._before)
        for made, weight in stand_in.parts:
            for i, residual in enumerate(self._residuals[made, self._branch]):
                tokens[i] = torch.add(tokens[i], residual, alpha=weight)
        replaced = (*tokens, *streams[len(tokens) :])
        return replaced[0] if isinstance(output, Tensor) else replaced


def predict_by_hand(name: str, model: VideoModel, folder: Path, plan: BroadcastPlan) -> Predict:
    """What predicts for one branch with the model as it is published, between hooks that carry a plan out."""
    hand = ByHand(name, plan)
    if isinstance(model, DiffusersVideo):
        parts = [part for part in ("transformer", "transformer_2") if (folder / name / part).is_dir()]
        plain = replace(model.denoise, experts=tuple(library_module(folder / name / part) for part in parts))
        for expert in plain.experts:
            hand.hook(expert)
    else:
        bare = replace(model, transformer=Plain(model.transformer))
        hand.hook(model.transformer)

    def predict(z: Tensor, given: StepInput, text: object, branch: str) -> Tensor:
        hand.at(given.step, branch)
        if isinstance(model, DiffusersVideo):
            return plain(z.repeat(1 + (branch == BOTH), 1, 1, 1, 1), given, text)
        return bare.predict(z, given, text, SimpleNamespace(branch=branch), NodeGroup())

    return predict


def plan_of(name: str, rules: StepRules) -> BroadcastPlan:
    return plan_for(family(name), request_of(name), rules, "float32")


def render_residuals_on_ranks(folder: Path) -> dict[tuple[Mesh, str], Denoised]:
    """Every family's clip under both plans on this rank's meshes."""
    done: dict[tuple[Mesh, str], Denoised] = {}
    groups = {m: open_group(dp=m[0], cfg=m[1], sp=m[2], device=torch.device("cpu")) for m, _ in MESHES}
    mine = {mesh: groups[mesh] for mesh, ranks in MESHES if dist.get_rank() in ranks}
    for name in ON_RANKS:
        model = load(name, folder)
        for mesh, group in mine.items():
            if mesh[1] == 1 or not family(name).embedded_guidance:
                rendered = render(name, model, STANDING_IN, group=group)
                rendered.clock.marks.clear()
                done[mesh, name] = rendered
    return done
