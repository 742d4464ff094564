"""A plan that leaves passes out, rendered by ranks."""

import torch

from pab.broadcast.step_rules import StepGroup, StepRules
from pab.parallel.mesh import open_group
from pab.sampling.denoise import Denoised
from tests.pab.worlds import clip, render, tiny_model

WITHOUT_SOME_PASSES = StepRules(
    num_steps=12,
    passes=(0, 1, 2, 4, 5, 8, 9, 11),
    groups=(
        StepGroup(kind="temporal", stack="temporal", compute=(0, 1, 4, 8, 11)),
        StepGroup(kind="cross", stack="spatial", compute=(0, 2, 9)),
    ),
)


def render_plan(cfg: int, sp: int) -> Denoised:
    group = open_group(dp=1, cfg=cfg, sp=sp, device=torch.device("cpu"))
    done = render(tiny_model(), clip(), WITHOUT_SOME_PASSES, group)
    done.clock.marks.clear()
    return done
