"""Meshes of four and eight ranks: the latents of one rank, and as many bytes as the model of time counts."""

from functools import cache

import pytest
import torch

from jobs.settings import Mesh
from pab.parallel.mesh import open_group
from pab.sampling.denoise import LoopSettings
from pipeline.planning.scaling import Tokens, expected
from tests.pab.worlds import CONFIG, PAB246, clip, render, tiny_model
from tests.ranks import run_on_ranks

MESHES = (Mesh(dp=2, cfg=2, sp=2), Mesh(dp=2, sp=4), Mesh(cfg=2, sp=4), Mesh(sp=8))
"""Of eight ranks; the first two are replicas of four."""
REQUEST = clip(num_frames=10, height=24, width=40, num_steps=6)
"""Five latent frames, fewer than eight ranks, of 6 patches."""
TOKENS = Tokens(places=5, others=6, width=CONFIG.hidden_size, there=1, value_bytes=4, share=0.0)


def render_all():
    model, found = tiny_model(), {}
    for mesh in MESHES:
        group = open_group(dp=mesh.dp, cfg=mesh.cfg, sp=mesh.sp, device=torch.device("cpu"))
        for in_turn in (False, True):
            done = render(model, REQUEST, PAB246, group, loop=LoopSettings(rows_in_turn=in_turn))
            found[mesh, in_turn] = done.latents, done.traffic, done.plan
    return found


@cache
def rendered():
    return run_on_ranks(8, render_all)


@cache
def alone():
    return render(tiny_model(), REQUEST).latents


@pytest.mark.parametrize("in_turn", [False, True], ids=["together", "in turn"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eight_ranks_render_the_latents_of_one_and_send_what_is_expected(mesh, in_turn):
    for of_rank in rendered():
        latents, *_ = of_rank[mesh, in_turn]
        assert (latents - alone()).abs().max() < 1e-5
    # The first rank of each pass has most places.
    _, traffic, plan = rendered()[0][mesh, in_turn]
    assert traffic.all_to_all_bytes == expected(1.0, plan, TOKENS, mesh).sent_bytes
