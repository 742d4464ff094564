"""LTX-Video beside the library's own pipeline and scheduler: what it has besides the other families of the library."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

from pab.broadcast.rules import NO_BROADCAST
from pab.families import find_family
from pab.families.ltx.config import LTX_13B_DISTILLED_MODEL, LTX_MODEL, ltx_tokens
from pab.families.ltx.levels import DISTILLED_TIMESTEPS, quadratic_timesteps
from pab.families.ltx.tiny import write_small_ltx
from pab.library.stretched_levels import moved_timesteps
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import initial_noise, plan_for
from pab.weights.checkpoint import CheckpointError
from tests.pab.denoised import relative
from tests.pab.library_world import displayed, edited, library_module, scheduler
from tests.pab.library_worlds import WORLDS
from tests.pab.ltx_worlds import ltx_world


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights("ltx", "ltx_2b")


@pytest.mark.parametrize("size", [(161, 512, 704), (97, 512, 768), (9, 256, 256), (1, 32, 32), (257, 704, 1280)])
def test_ltx_s_planned_levels_are_the_library_s(weights, size):
    flow, tokens = scheduler(weights / "ltx"), ltx_tokens(*size)
    for num_steps in (2, 3, 7, 30, 40, 50, 333, 1000):
        # What the pipeline gives its scheduler.
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
        flow.set_timesteps(num_steps, sigmas=sigmas, mu=calculate_shift(tokens, 1024, 4096, 0.95, 2.05))
        assert moved_timesteps(num_steps, tokens) == tuple(flow.timesteps.tolist())
    with pytest.raises(ValueError, match="num_steps=1, allowed 2 to 1000"):
        moved_timesteps(1, tokens)


def test_levels_from_0_9_5_on_are_the_library_s():
    for num_steps in (2, 3, 7, 30, 50, 333, 1000):
        assert quadratic_timesteps(num_steps) == tuple((linear_quadratic_schedule(num_steps) * 1000).tolist())
    with pytest.raises(ValueError, match="num_steps=1, allowed 2 to 1000"):
        quadratic_timesteps(1)


@pytest.mark.parametrize(("name", "layers"), [("ltx", 28), ("ltx_2b", 28), ("ltx_13b", 48)])
def test_ltx_s_preset_reuses_between_the_first_and_the_last_steps(name, layers):
    family = find_family(name)
    request = WORLDS["ltx"].clip(num_frames=161, height=512, width=704, num_steps=50)
    plan = plan_for(family, request, family.presets["pab2-6"], "bfloat16")
    reused = [step for step, pattern in enumerate(plan.patterns) if "." in pattern]
    assert (reused[0], reused[-1]) == (8, 41)
    assert [plan.computed(kind) // layers for kind in ("spatial", "cross", "mlp")] == [33, 21, 50]


def test_distilled_models_have_eight_steps_of_one_pass_as_in_the_library(tmp_path):
    world = ltx_world(replace(LTX_13B_DISTILLED_MODEL, num_layers=2))
    world.write(tmp_path / world.family.name)
    family, request = find_family(world.family.name), world.clip(num_steps=8, guidance_scale=1.0)
    model = world.load(tmp_path)
    done = world.render(model, request, NO_BROADCAST)
    assert (done.passes, done.plan.timesteps) == (1, DISTILLED_TIMESTEPS)
    assert torch.equal(done.latents, world.library_latents(tmp_path, model, request))
    assert (list(family.limits.num_steps), family.limits.guidance_scale) == ([8], (1.0, 1.0))
    assert list(family.presets) == ["none"], "there is nothing to reuse in eight steps"


@pytest.mark.parametrize("name", ["ltx", "ltx_2b"])
def test_a_whole_ltx_run_is_the_library_s_from_the_seed_alone(weights, name):
    """Prompt to frames, the noise before decoding and the noise inside the decoder too."""
    world = WORLDS[name]
    model, request = world.load(weights), world.clip(num_steps=2)
    pipeline = world.pipeline(weights / name, request)
    pipeline.register_modules(**world.text_parts(weights / name))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(request.seed)
    torch.manual_seed(request.seed)
    theirs = pipeline(
        prompt=request.prompt, negative_prompt=request.negative_prompt, height=request.height, width=request.width,
        num_frames=request.num_frames, num_inference_steps=request.num_steps, guidance_scale=request.guidance_scale,
        decode_timestep=0.05, decode_noise_scale=0.025, output_type="pt", return_dict=False,
        **world.options(request) | {"generator": generator},
    )[0]  # fmt: skip
    before = torch.get_rng_state()
    ours = model.decode(world.render(model, request, NO_BROADCAST).latents, request, NodeGroup()).frames
    assert torch.equal(torch.get_rng_state(), before), "noise inside the decoder is the clip's, not the process's"
    assert (ours / 255 - theirs.permute(0, 1, 3, 4, 2)).abs().max() < 0.6 / 255
    other = model.decode(
        world.render(model, request, NO_BROADCAST).latents, replace(request, seed=4), NodeGroup()
    ).frames
    assert not torch.equal(other, ours)


def test_ltx_decodes_with_the_vae_of_its_first_release(tmp_path):
    world = WORLDS["ltx"]
    write_small_ltx(tmp_path / "ltx", 0, replace(LTX_MODEL, num_layers=2), timestep_vae=False)
    model = world.load(tmp_path)
    for frames in (1, 9):
        request = world.clip(num_frames=frames)
        latents = initial_noise(request, model.latent_shape(request))
        vae = library_module(tmp_path / "ltx" / "vae")
        with torch.inference_mode():
            plain = latents * vae.latents_std.view(1, -1, 1, 1, 1) + vae.latents_mean.view(1, -1, 1, 1, 1)
            theirs = displayed(vae.decode(plain).sample)
        ours = model.decode(latents, request, NodeGroup()).frames
        assert ours.shape == (1, frames, world.side, world.side, 3)
        assert (ours / 255 - theirs).abs().max() < 0.6 / 255


def test_ltx_hears_the_frame_rate(weights):
    world = WORLDS["ltx"]
    model = world.load(weights)
    slow, fast = (world.render(model, world.clip(fps=fps, num_steps=2), NO_BROADCAST).latents for fps in (8, 25))
    assert relative(slow, fast) > 1e-3


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer/config.json", {"num_layers": 48}, "num_layers=48, this family's model has 2"),
        ("transformer/config.json", {"caption_channels": 48}, r"misshaped .*: caption_projection.linear_1.weight"),
        ("vae/config.json", {"timestep_conditioning": False}, r"surplus .*: decoder"),
        ("scheduler/scheduler_config.json", {"shift_terminal": None}, "shift_terminal=None, this family's"),
        ("scheduler/scheduler_config.json", {"time_shift_type": "linear"}, "gives timesteps .* this family plans"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused(weights, tmp_path, file, changes, message):
    edited(weights / "ltx", tmp_path / "ltx", file, **changes)
    with pytest.raises(CheckpointError, match=message):
        WORLDS["ltx"].load(tmp_path)
