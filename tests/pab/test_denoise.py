import dataclasses
import gc

import pytest
import torch

from pab.broadcast.rules import NO_BROADCAST
from pab.broadcast.state import BOTH, BroadcastState
from pab.families.open_sora.stdit3 import ClipShape
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import NotFiniteError, initial_noise
from tests.pab.worlds import PAB246, OneBranchAtATime, clip, render, tiny_model
from tests.ranks import run_on_ranks

RANKS_BOUND = 1e-5


def test_no_broadcast_equals_calling_the_plain_transformer():
    """The loop with an empty plan is the bare sampling loop over `forward`, bit by bit."""
    model, request = tiny_model(), clip()
    result = render(model, request, NO_BROADCAST)
    transformer = model.transformer
    text = model.encode_prompts([request])[0].states(BOTH)
    flow = model.scheduler(request, NodeGroup().sp)
    shape = ClipShape(height=24, width=40, fps=torch.tensor([8.0]), num_latent_frames=5)
    z = initial_noise(request, model.latent_shape(request))
    with torch.inference_mode():
        for step, level in enumerate(flow.timesteps):
            cond, uncond = transformer.denoise(z.repeat(2, 1, 1, 1, 1), level, text, clip=shape)[:, :4].chunk(2)
            z = flow.advance(z, z, uncond + 3.0 * (cond - uncond), step)
    assert torch.equal(result.latents, z)


def test_python_looks_for_unused_objects_after_the_loop_not_in_it():
    """It takes a second in a process with compiled graphs, in which the device is given nothing to do."""
    seen = []
    model = dataclasses.replace(tiny_model(), model_fps=lambda _: seen.append(gc.isenabled()) or 8.0)
    render(model, clip(num_steps=2))
    assert (seen, gc.isenabled()) == ([False] * 2, True)
    gc.disable()
    try:
        render(model, clip(num_steps=1))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_calls_counted_are_calls_planned():
    result = render(tiny_model(), clip())
    for kind in ("spatial", "temporal", "cross", "mlp"):
        assert result.computed[kind] == result.plan.computed(kind)
        assert result.computed[kind] + result.reused[kind] == result.plan.total(kind)
    assert result.reused["mlp"] == 4


def test_clip_after_a_failed_clip_equals_a_fresh_one_bit_by_bit():
    model, request = tiny_model(), clip()
    fresh = render(tiny_model(), request).latents
    block, calls = model.transformer.temporal_blocks[1], []

    def fail(*_):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("device lost")

    handle = block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="device lost"):
        render(model, clip(seed=9))
    handle.remove()
    assert torch.equal(render(model, request).latents, fresh)


def test_reuse_never_crosses_guidance_branches():
    """Two passes a step with their own kept outputs give what one pass over both rows gives."""
    model, request = tiny_model(), clip()
    together = render(model, request).latents
    apart = render(OneBranchAtATime(model, request), request).latents
    assert (together - apart).abs().max() < 1e-5
    assert (together - render(model, request, NO_BROADCAST).latents).abs().max() > 1e-3


def test_guidance_of_one_runs_a_single_branch():
    result = render(tiny_model(), clip(guidance_scale=1.0))
    assert result.latents.isfinite().all()


def test_latents_that_are_not_finite_are_an_error_that_counts_them():
    model = tiny_model()
    with torch.no_grad():
        model.transformer.final_layer.linear.bias.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="480 of 480 latent values are NaN or infinite"):
        render(model, clip(num_frames=16), PAB246)


def test_state_frees_outputs_at_their_last_use():
    result = render(tiny_model(), clip())
    state = BroadcastState(result.plan)
    assert state.kept_bytes == 0
    assert result.kept_bytes_peak > 0


def ranks_render(mesh, requests):
    group = open_group(device=torch.device("cpu"), **mesh)
    model = tiny_model()
    results = [render(model, request, group=group) for request in requests]
    return [(result.latents, result.traffic, result.plan) for result in results]


SHAPES = [clip(), clip(num_frames=2, height=40, width=24, prompt="a"), clip(num_frames=14, height=24, width=24)]


@pytest.fixture(scope="module")
def one_rank():
    model = tiny_model()
    return [render(model, request) for request in SHAPES]


MESHES = [{"dp": 1, "cfg": cfg, "sp": sp} for cfg, sp in ((1, 2), (2, 1), (2, 2), (1, 3))]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_several_ranks_render_the_latents_of_one(mesh, one_rank):
    for rank in run_on_ranks(mesh["cfg"] * mesh["sp"], ranks_render, mesh, SHAPES):
        for (latents, traffic, plan), alone in zip(rank, one_rank, strict=True):
            assert (latents - alone.latents).abs().max() < RANKS_BOUND
            switches = 2 * plan.computed("temporal") if mesh["sp"] > 1 else 0
            assert traffic.all_to_alls == switches


def test_a_mesh_that_does_not_fit_the_ranks_is_an_error():
    with pytest.raises(ValueError, match="mesh dp=1,cfg=2,sp=2 needs 4 ranks, the group has 1"):
        open_group(dp=1, cfg=2, sp=2, device=torch.device("cpu"))
