"""Clips of few steps reuse nothing before their shape is decided, and say so."""

from dataclasses import replace

import pytest
import torch

from jobs.quality.alarms import alarms_of, pixel_statistics
from pab.broadcast.few_steps import LEAST_FULL_STEPS, NO_REUSE_STEPS, reuse_begins
from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.rules import BroadcastRules, pyramid
from pab.families import FAMILIES
from pab.families.demo.family import DEMO
from pab.families.demo.training.read_back import NOTHING, read_scenes
from pab.family import ClipRequest, LoadRequest
from pab.parallel.mesh import NodeGroup
from pab.sampling.batch import denoise_batch, noise_of

ASKED = (
    ("red", "ring", "right"),
    ("red", "triangle", "down"),
    ("green", "triangle", "right"),
    ("red", "star", "right"),
)
"""Of clips that show nothing at 12 steps if the rules of the default plan decide alone; with their seeds."""
SEEDS = (1, 3, 4, 7)


def request(num_steps: int, family=DEMO, **changes) -> ClipRequest:
    usual = family.defaults
    return ClipRequest(
        **{
            "prompt": "a red circle", "negative_prompt": None, "seed": 0, "num_frames": usual.num_frames,
            "height": usual.height, "width": usual.width, "fps": usual.fps, "num_steps": num_steps,
            "guidance_scale": usual.guidance_scale,
        } | changes
    )  # fmt: skip


def plan(num_steps: int, broadcast: str = "pab246") -> BroadcastPlan:
    return DEMO.plan(request(num_steps), DEMO.presets[broadcast], "float32")


def plan_of_rules_alone(num_steps: int, rules: BroadcastRules) -> BroadcastPlan:
    return make_plan(rules, DEMO.timesteps(request(num_steps), "float32"), DEMO.sites)


@torch.inference_mode()
def test_twelve_steps_under_the_default_plan_show_what_was_asked_for():
    model = DEMO.load(LoadRequest(weights=None, precision="float32", device="cpu"))
    requests = [
        request(12, num_frames=8, prompt=f"a small {colour} {shape} moving {direction} on a navy background", seed=seed)
        for (colour, shape, direction), seed in zip(ASKED, SEEDS, strict=True)
    ]
    done = denoise_batch(
        model,
        requests,
        prompts=model.encode_prompts(requests),
        noise=noise_of(requests, model.latent_shape(requests[0])),
        plan=plan(12),
        group=NodeGroup(),
    )
    assert sum(done.reused.values()) > 0
    frames = model.decode(done.latents, requests[0], NodeGroup()).frames.numpy()
    assert [alarms_of(pixel_statistics(clip)) for clip in frames] == [()] * 4
    read = read_scenes(model.codec.autoencoder.decode(done.latents))
    assert NOTHING not in {scene.shape for scene in read}
    assert [(scene.colour, scene.shape, scene.direction) for scene in read] == list(ASKED)


@pytest.mark.parametrize("broadcast", ["pab246", "pab357", "pab579"])
@pytest.mark.parametrize("num_steps", range(1, 30))
def test_nothing_is_reused_before_the_noise_and_the_steps_that_a_clip_of_full_length_keeps_free(num_steps, broadcast):
    first = min(set(range(30)) - set(plan(30, broadcast).full_steps))
    made = plan(num_steps, broadcast)
    reusing = set(range(num_steps)) - set(made.full_steps)
    if num_steps <= NO_REUSE_STEPS:
        assert not reusing
    for step in reusing:
        assert step >= LEAST_FULL_STEPS
        assert made.timesteps[step] <= plan(30, broadcast).timesteps[first]
    assert all(source <= step for step, row in enumerate(made.sources) for source in row)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_preset_reuses_over_a_longer_stretch_of_noise_than_at_the_published_number_of_steps(name):
    family = FAMILIES[name]
    full = request(family.defaults.num_steps, family)
    presets = {name: rules for name, rules in family.presets.items() if isinstance(rules, BroadcastRules)}
    for broadcast, rules in presets.items():
        published = longest_stretches(family.plan(full, rules, "float32"))
        for num_steps in {full.num_steps * share // 12 for share in (4, 11)} & {*family.limits.num_steps}:
            made = family.plan(request(num_steps, family), rules, "float32")
            for kind, stretch in longest_stretches(made).items():
                assert stretch <= published[kind] + 1e-6, (broadcast, num_steps, kind)


def longest_stretches(made: BroadcastPlan) -> dict[str, float]:
    """By kind of site, the longest stretch from the noise level of an output to that of a step that reuses it."""
    longest = {site.kind: 0.0 for site in made.sites}
    columns = {*zip((site.kind for site in made.sites), zip(*made.sources, strict=True), strict=True)}
    for kind, column in columns:
        stretches = [made.timesteps[source] - level for source, level in zip(column, made.timesteps, strict=True)]
        longest[kind] = max(longest[kind], *stretches)
    return longest


@pytest.mark.parametrize("name", FAMILIES)
def test_plans_of_the_published_number_of_steps_and_more_are_what_the_rules_say(name):
    family = FAMILIES[name]
    for num_steps in (family.defaults.num_steps, 2 * family.defaults.num_steps):
        if num_steps not in family.limits.num_steps:
            continue
        asked = request(num_steps, family)
        for rules in family.presets.values():
            fresh = family.cache_reset_steps(asked, "bfloat16")
            if "foresight" in rules.to_dict() and fresh:
                continue
            made = family.plan(asked, rules, "bfloat16")
            alone = make_plan(rules, family.timesteps(asked, "bfloat16"), family.sites, cache_reset_steps=fresh)
            assert (made, made.held_back, made.warning("x")) == (alone, 0, None)


def test_rules_that_reuse_from_the_second_step_on_are_taken_at_their_word():
    everywhere = pyramid(2, 2, 2, window=(0, 1001))
    assert DEMO.plan(request(4), everywhere, "float32") == plan_of_rules_alone(4, everywhere)


def test_a_plan_says_how_many_steps_were_held_back_and_what_to_do():
    made = plan(12)
    alone = plan_of_rules_alone(12, DEMO.presets["pab246"])
    changed = [step for step in range(12) if made.sources[step] != alone.sources[step]]
    assert made.held_back == 7
    assert {1, 2} <= set(changed)
    told = made.warning("pab246")
    assert told is not None
    assert "broadcast pab246 with 12 steps: less is reused, 92% of the calls are computed" in told
    assert "made for 30 steps (75% of the calls). At 7 steps they alone would reuse more" in told
    assert "use more steps, or --broadcast none" in told
    assert "nothing is reused" in str(plan(8).warning("pab246"))
    assert made.digest != alone.digest
    assert replace(made, held_back=0).digest == made.digest


@pytest.mark.parametrize(
    ("steps", "first", "begin"),
    [
        (12, 3, 3),
        (20, 3, 3),
        (9, 3, 3),
        (8, 3, 8),
        (30, 3, 0),
        (60, 3, 0),
        (12, 1, 0),
        (12, None, 0),
        (20, 9, 6),
        (12, 2, 2),
    ],
)
def test_reuse_begins_after_as_many_steps_and_as_much_noise(steps, first, begin):
    levels, full = ([1000 - 1000 * i / n for i in range(n)] for n in (steps, 30))
    assert reuse_begins(levels, full, first) == begin
