"""Presets of few steps, shifts, second and dynamic guidance, CogVideoX's DPM: against the library's own pipelines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pab.broadcast.rules import NO_BROADCAST
from pab.families import FAMILIES
from pab.families.cogvideox.levels import dynamic_guidance
from pab.families.ltx.levels import PRESET_LEVELS
from pab.families.wan.levels import FEW_STEPS
from pab.family import ClipRequest
from pab.library.parts import library_class
from pab.sampling.denoise import initial_noise
from tests.pab.library_world import scheduler
from tests.pab.library_worlds import WORLDS


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights("wan", "wan22_a14b", "ltx", "hunyuan_video", "cogvideox_5b")


class Given:
    """A scheduler of the library that is always given the same levels, which its pipeline does not take."""

    def __init__(self, name: str, **levels: list[float]) -> None:
        self.inner = library_class(name).from_config({"num_train_timesteps": 1000, "shift": 1.0})
        self.levels = levels

    def scheduler(self) -> Any:
        plain, levels = self.inner.set_timesteps, self.levels

        def set_timesteps(_num_steps: int = 0, device: Any = None, sigmas: Any = None, mu: Any = None) -> None:
            plain(device=device, **levels)

        self.inner.set_timesteps = set_timesteps
        return self.inner


def agrees(weights: Path, name: str, request: ClipRequest, *, change: Any, **options: Any) -> None:
    """Renders a clip here and by the library's pipeline, which `change` sets up; the latents are the same."""
    world = WORLDS[name]

    def pipeline(folder: Path, clip: ClipRequest) -> Any:
        changed = world.pipeline(folder, clip)
        change(changed, folder)
        # Noise that the library draws after steps comes behind the initial noise, from the same seed.
        torch.manual_seed(clip.seed)
        torch.randn(initial_noise(clip, model.latent_shape(clip)).shape)
        return changed

    def all_options(clip: ClipRequest) -> dict[str, Any]:
        return world.options(clip) | options

    model = world.load(weights)
    ours = world.render(model, request, NO_BROADCAST).latents
    theirs = replace(world, pipeline=pipeline, options=all_options).library_latents(weights, model, request)
    assert torch.equal(ours, theirs)
    assert ours.std() > 0.1


@pytest.mark.parametrize(("name", "preset"), [("wan22_a14b", "lightning4"), ("wan", "dmd3")])
def test_distilled_wan_is_the_library_s_pipeline_with_the_published_levels(weights, name, preset):
    few, fixed = FEW_STEPS[preset], WORLDS[name].family.samplings[preset]
    if preset == "dmd3":
        given = Given("FlowMatchLCMScheduler", sigmas=list(few.levels), timesteps=list(few.timesteps))
    else:
        shifted = [5 * level / (1 + 4 * level) for level in (1.0, 0.75, 0.5, 0.25)]
        given = Given("FlowMatchEulerDiscreteScheduler", sigmas=shifted)
    request = WORLDS[name].clip(num_steps=fixed.num_steps, guidance_scale=fixed.guidance_scale, sampling=preset)
    agrees(weights, name, request, change=lambda pipeline, _: pipeline.register_modules(scheduler=given.scheduler()))


def test_levels_of_distilled_wan_are_the_published_ones():
    assert FEW_STEPS["lightning4"].timesteps == pytest.approx((1000, 937.5, 833.3333, 625))
    dmd = FEW_STEPS["dmd3"]
    assert dmd.timesteps == (1000.0, 757.0, 522.0)
    table = [8 * k / (1000 + 7 * k) for k in range(1, 1001)]
    assert dmd.levels == pytest.approx([min(table, key=lambda s: abs(1000 * s - t)) for t in dmd.timesteps])
    experts = [t >= 875 for t in FEW_STEPS["lightning4"].timesteps]
    assert experts == [True, True, False, False], "two steps of each expert of Wan 2.2"


def test_distilled_ltx_is_the_library_s_pipeline_with_the_published_levels(weights):
    given = Given("FlowMatchEulerDiscreteScheduler", sigmas=list(PRESET_LEVELS))
    request = WORLDS["ltx"].clip(num_steps=8, guidance_scale=1.0, sampling="distilled8")
    agrees(weights, "ltx", request, change=lambda pipeline, _: pipeline.register_modules(scheduler=given.scheduler()))


@pytest.mark.parametrize(("name", "key"), [("wan", "flow_shift"), ("hunyuan_video", "shift")])
def test_a_shift_of_the_levels_is_that_of_the_library_s_scheduler(weights, name, key):
    world, request = WORLDS[name], WORLDS[name].clip(flow_shift=8.5)

    def change(pipeline: Any, folder: Path) -> None:
        pipeline.register_modules(scheduler=scheduler(folder, **{key: 8.5}))

    agrees(weights, name, request, change=change)
    own = world.family.flow_shift(request.height, request.width)
    assert world.family.timesteps(replace(request, flow_shift=own), "") == world.family.timesteps(world.clip(), "")


@pytest.mark.parametrize("second", [2.5, 1.0])
def test_the_second_expert_of_wan_has_a_guidance_scale_of_its_own(weights, second):
    request = WORLDS["wan22_a14b"].clip(guidance_scale=4.0, guidance_scale_2=second)
    agrees(weights, "wan22_a14b", request, change=lambda *_: None, guidance_scale_2=second)


@pytest.mark.parametrize("preset", ["dpm", "dynamic", "dpm-dynamic"])
def test_cogvideox_has_the_library_s_dpm_solver_and_dynamic_guidance(weights, preset):
    def change(pipeline: Any, folder: Path) -> None:
        if preset != "dynamic":
            dpm = library_class("CogVideoXDPMScheduler").from_config(pipeline.scheduler.config)
            pipeline.register_modules(scheduler=dpm)

    request = WORLDS["cogvideox_5b"].clip(sampling=preset)
    agrees(weights, "cogvideox_5b", request, change=change, use_dynamic_cfg=preset != "dpm")


def test_dynamic_guidance_stays_between_one_and_the_scale():
    scales = dynamic_guidance(6.0, 50)
    assert len(scales) == 50
    assert all(1.0 <= scale <= 7.0 for scale in scales)
    assert len({round(scale, 6) for scale in scales}) > 10


@pytest.mark.parametrize("name", ["wan", "wan_14b", "wan22_a14b", "wan22_5b", "ltx"])
def test_few_steps_reuse_nothing_and_are_planned_at_their_own_levels(name):
    family = FAMILIES[name]
    for preset, sampling in family.samplings.items():
        request = ClipRequest(
            prompt="", negative_prompt=None, seed=0, fps=16, num_steps=sampling.num_steps, guidance_scale=1.0,
            num_frames=family.defaults.num_frames, height=family.defaults.height, width=family.defaults.width,
            sampling=preset,
        )  # fmt: skip
        plan = family.plan(request, NO_BROADCAST, "bfloat16")
        assert plan.num_steps == sampling.num_steps == len(plan.full_steps)
        assert plan.timesteps == family.timesteps(request, "bfloat16")
