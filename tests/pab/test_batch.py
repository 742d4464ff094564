"""Clips rendered together: each comes out as it does alone, and one that goes wrong goes alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pab.model import RendersBatches
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.batch import denoise_batch, noise_of, unbatch
from pab.sampling.denoise import LoopSettings, NotFiniteError, plan_for
from tests.pab import every_family
from tests.pab.denoised import denoised, relative
from tests.pab.every_family import EVERY_OTHER
from tests.ranks import run_on_ranks

TOGETHER = ("demo", "open_sora", "latte", "open_sora_plan_v110", "open_sora_plan_v120")
BOUND = 1e-5
"""Of the largest latent value, in float32: what another order of sums may change."""
MESHES = [(1, 2, 1), (1, 1, 2)]


def requests_of(name):
    """Three clips with prompts of unequal length, one with a negative prompt of its own."""
    request = every_family.request_of(name)
    return [
        request,
        replace(request, prompt="a large green square rising slowly on a black background", seed=4),
        replace(request, prompt="a circle", negative_prompt="a small blue square", seed=5),
    ]


def render_batch(name, model, requests, group=None, keep="full"):
    return denoise_batch(
        model,
        requests,
        prompts=model.encode_prompts(requests),
        noise=noise_of(requests, model.latent_shape(requests[0])),
        plan=plan_for(every_family.family(name), requests[0], EVERY_OTHER, "float32"),
        group=group or NodeGroup(),
        loop=LoopSettings(cache_dtype=keep),
    )


def render_alone(name, model, request, keep="full"):
    plan = plan_for(every_family.family(name), request, EVERY_OTHER, "float32")
    return denoised(model, request, plan, loop=LoopSettings(cache_dtype=keep))


@pytest.fixture(scope="module")
def folder(tiny_weights) -> Path:
    return tiny_weights(*TOGETHER)


@pytest.fixture(scope="module")
def alone(folder):
    models = {name: every_family.load(name, folder) for name in TOGETHER}
    return {
        name: [render_alone(name, models[name], request).latents for request in requests_of(name)] for name in TOGETHER
    }


@pytest.mark.parametrize("name", TOGETHER)
def test_clips_rendered_together_equal_each_alone(name, folder, alone):
    model = every_family.load(name, folder)
    together = render_batch(name, model, requests_of(name))
    assert together.latents.shape[0] == 3
    for one, own in zip(unbatch(together), alone[name], strict=True):
        assert relative(one.latents, own) < BOUND
    assert relative(together.latents[:1], alone[name][1]) > 0.1


def test_every_family_that_says_so_renders_clips_together_and_no_other(folder):
    assert {name for name in every_family.SMALL if every_family.family(name).max_batch > 1} == set(TOGETHER)
    for name in TOGETHER:
        assert isinstance(every_family.load(name, folder), RendersBatches)


@pytest.mark.parametrize("name", ["open_sora", "open_sora_plan_v120"])
def test_clips_of_one_branch_and_outputs_kept_as_int8_equal_each_alone(name, folder):
    model = every_family.load(name, folder)
    requests = [replace(request, guidance_scale=1.0) for request in requests_of(name)]
    together = render_batch(name, model, requests, keep="int8")
    for one, request in zip(unbatch(together), requests, strict=True):
        # A value on the border of two integers may fall to either side.
        assert relative(one.latents, render_alone(name, model, request, keep="int8").latents) < 1e-3


def together_on_ranks(folder):
    groups = {m: open_group(dp=m[0], cfg=m[1], sp=m[2], device=torch.device("cpu")) for m in MESHES}
    results = {}
    for name in TOGETHER:
        model = every_family.load(name, folder)
        for mesh, group in groups.items():
            done = render_batch(name, model, requests_of(name), group=group)
            results[mesh, name] = (done.latents, done.traffic, done.plan.all_to_alls)
    return results


def test_on_two_ranks_clips_rendered_together_equal_each_alone(folder, alone):
    for rank in run_on_ranks(2, together_on_ranks, folder):
        assert len(rank) == len(MESHES) * len(TOGETHER)
        for (mesh, name), (latents, traffic, all_to_alls) in rank.items():
            assert relative(latents, torch.cat(alone[name])) < BOUND, (mesh, name)
            assert traffic.all_to_alls == (all_to_alls if mesh[2] == 2 else 0), (mesh, name)


class OneRowBroken:
    """Gives NaN in the first latent value of one clip."""

    def __init__(self, model, row):
        self.model, self.row = model, row

    def __getattr__(self, name):
        return getattr(self.model, name)

    def gather(self, latents, request, sp):
        latents = self.model.gather(latents, request, sp).clone()
        latents[self.row, 0, 0, 0, 0] = float("nan")
        return latents


def test_a_clip_that_is_not_finite_fails_alone_and_the_others_are_as_they_were(folder, alone):
    model = OneRowBroken(every_family.load("open_sora", folder), 1)
    first, second, third = unbatch(render_batch("open_sora", model, requests_of("open_sora")))
    assert isinstance(second, NotFiniteError)
    assert str(second).startswith(f"1 of {alone['open_sora'][1].numel()} latent values are NaN or infinite")
    assert relative(first.latents, alone["open_sora"][0]) < BOUND
    assert relative(third.latents, alone["open_sora"][2]) < BOUND


def test_a_clips_part_has_its_share_of_seconds_and_bytes_and_the_calls_of_the_loop(folder):
    model, requests = every_family.load("demo", folder), requests_of("demo")
    together = render_batch("demo", model, requests)
    part = unbatch(together)[2]
    assert not isinstance(part, NotFiniteError)
    assert sum(part.step_seconds) == pytest.approx(sum(together.step_seconds) / 3)
    assert part.computed == render_alone("demo", model, requests[2]).computed
    assert (
        part.kept_bytes_peak == together.kept_bytes_peak == 3 * render_alone("demo", model, requests[2]).kept_bytes_peak
    )


def test_clips_of_different_sizes_are_not_rendered_together(folder):
    model = every_family.load("demo", folder)
    first, second, _ = requests_of("demo")
    with pytest.raises(AssertionError, match="differ in more than prompts"):
        render_batch("demo", model, [first, replace(second, guidance_scale=2.0)])


def test_prompts_of_one_length_have_a_mask_too_so_that_they_share_the_graphs_of_the_others(folder):
    model = every_family.load("open_sora", folder)
    request = every_family.request_of("open_sora")
    prompts = model.encode_prompts([request, replace(request, seed=9)])
    mask = model.batch_prompts(prompts, request).states("both").mask_B11L
    assert mask.shape[0] == 4
    assert mask.all()
    assert prompts[0].states("both").mask_B11L is None
