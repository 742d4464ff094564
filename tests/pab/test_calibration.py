"""What a calibration measures of a clip, and the search for a plan on errors that are known."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from pab.broadcast.plan import make_plan
from pab.broadcast.rules import NO_BROADCAST
from pab.broadcast.sites import Site
from pab.broadcast.step_rules import StepRules
from pab.calibration.changes import Changes, Sampler, Samples, mean_changes
from pab.calibration.effects import spread_effects
from pab.calibration.groups import site_groups
from pab.calibration.passes_and_sites import search_passes_and_sites
from pab.calibration.reference import ReferenceClips
from pab.calibration.search import Budget, ErrorModel, PlanSearch, error_model
from pab.parallel.mesh import Axis, NodeGroup
from pab.sampling.denoise import plan_for
from tests.pab.every_family import family, load, render, request_of

FAMILIES = ("demo", "latte", "wan", "hunyuan_video")
"""Blocks of ours with two stacks, and with parts of their own; modules of the library with one stream, and with two."""


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_measuring_changes_nothing_and_a_probe_is_the_clip_with_one_reuse(weights, name):
    model, request = load(name, weights), request_of(name)
    groups = site_groups(family(name).sites)
    plan = plan_for(family(name), request, NO_BROADCAST, "float32")
    clips = ReferenceClips(model=model, requests=(request,), plan=plan, group=NodeGroup(), window=2)
    (changes,), _, _ = clips.render(groups)
    exact = render(name, model, NO_BROADCAST)
    assert torch.equal(clips.latents, exact.latents)
    assert changes.difference.shape == (len(groups) + 1, 4, 4)
    assert (np.diagonal(changes.difference, axis1=1, axis2=2) == 0).all()
    assert (changes.neighbours > 0).all()

    # The finished latents follow the last prediction along a straight line.
    group = groups[-1]
    reusing = render(name, model, StepRules(num_steps=4, groups=(group.computing_at([0, 1, 2]),)))
    assert sum(reusing.reused.values()) == len(group.names) * reusing.passes
    moved, missed = clips.sampled(reusing.latents - exact.latents)[0], clips.site_error(group, 3)[0]
    assert abs(moved @ missed) / (np.linalg.norm(moved) * np.linalg.norm(missed)) > 0.999

    skipping = render(name, model, StepRules(num_steps=4, groups=(), passes=(0, 1, 3)))
    assert skipping.computed == {kind: count * 3 // 4 for kind, count in exact.computed.items()}
    assert skipping.reused == {kind: count // 4 for kind, count in exact.computed.items()}
    assert skipping.kept_bytes_peak == 0
    missed_by = (clips.guided[1] - clips.guided[2]).norm().item()
    assert clips.gain_at(2)[0] * missed_by == pytest.approx((skipping.latents - exact.latents).norm().item(), rel=1e-3)


def test_a_clip_is_measured_on_one_rank(weights):
    model, request = load("demo", weights), request_of("demo")
    plan = plan_for(family("demo"), request, NO_BROADCAST, "float32")
    with pytest.raises(ValueError, match="one rank, this group has 2"):
        ReferenceClips(
            model=model, requests=(request,), plan=plan, group=NodeGroup(clip=Axis(size=2)), window=2
        )  # fmt: skip


def test_changes_compare_every_step_with_every_other():
    site = Site(name="a", kind="cross", stack="spatial", block=0)
    other = Site(name="b", kind="cross", stack="spatial", block=1)
    samples = Samples()
    for step, value in enumerate((1.0, 3.0, 4.0)):
        samples.take("a", "both", (torch.full((2, 5), value),))
        samples.take("b", "both", (torch.full((7,), -value),))
        samples.take("elsewhere", "both", (torch.full((7,), 100.0 * step),))
    changes = samples.changes(site_groups([site, other]))
    assert changes.difference[0].tolist() == [[0, 4, 9], [4, 0, 1], [9, 1, 0]]
    assert changes.from_step_to_step[0].tolist() == [4 / 9, 1 / 16]
    assert mean_changes([changes, changes]).difference[0, 0].tolist() == [0, 4 / 9, 9 / 16]


def test_large_outputs_are_sampled_at_the_same_places_every_time():
    sampler, x = Sampler(limit=100), torch.arange(10_000.0)
    assert torch.equal(sampler(x), sampler(x.reshape(100, 100)))
    assert len(sampler(x).unique()) > 90
    assert torch.equal(Sampler(limit=100)(x), sampler(x))
    assert not torch.equal(Sampler(limit=100, seed=1)(x), sampler(x))
    assert torch.equal(sampler(x[:100]), x[:100])


def test_groups_are_kinds_in_stacks_cut_into_ranges_of_blocks():
    sites = family("demo").sites
    assert [group.label for group in site_groups(sites)][:2] == ["spatial", "cross in spatial"]
    cut = site_groups(sites, ranges=2)
    assert [group.blocks for group in cut[:2]] == [(0, 1), (2, 3, 4)]
    assert sorted(name for group in cut for name in group.names) == sorted(site.name for site in sites)
    rules = StepRules(num_steps=4, groups=tuple(group.computing_at([0]) for group in cut))
    assert set(make_plan(rules, [4.0, 3.0, 2.0, 1.0], sites).sources[-1]) == {0}


def test_effects_between_probes_follow_the_change_of_the_output():
    # An effect of 2 for a change of amplitude 1 at step 1, of 8 at step 3, so of 4 at step 2.
    probed = {1: torch.tensor([2.0, 0.0]), 3: torch.tensor([8.0, 0.0])}
    effects = spread_effects(probed, np.array([1.0, 9.0, 1.0, 4.0]))
    assert effects[:, 0] == pytest.approx([0.0, 2.0, 12.0, 8.0, 16.0])
    assert (effects[:, 1] == 0).all()


NUM_GROUPS, NUM_STEPS = 2, 6


def known_errors(seed: int) -> ErrorModel:
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(NUM_GROUPS, NUM_STEPS, 5)) * rng.uniform(0.1, 3.0, size=(NUM_GROUPS, NUM_STEPS, 1))
    outputs = rng.normal(size=(NUM_GROUPS, NUM_STEPS, 4)).cumsum(axis=1)
    relative = np.square(outputs[:, :, None] - outputs[:, None]).mean(-1)
    return error_model([effects], relative)


def budget(share: float) -> Budget:
    return Budget(prices=np.array([[1.0, 2.0]]) / (3 * NUM_STEPS), shares=np.array([share]))


def first_only() -> np.ndarray:
    return np.arange(NUM_STEPS) == 0


def error_of(model: ErrorModel, computes: np.ndarray) -> float:
    everywhere = np.ones(computes.shape[1], dtype=bool)
    reused = np.stack([model.reused(group, row, everywhere) for group, row in enumerate(computes)])
    return float(np.einsum("gs,gsht,ht->", reused, model.effects, reused))


def best_of_all(model: ErrorModel, allowed: Budget) -> float:
    rows = [np.array([True, *rest]) for rest in itertools.product((True, False), repeat=NUM_STEPS - 1)]
    plans = (np.stack(pair) for pair in itertools.product(rows, repeat=NUM_GROUPS))
    return min(error_of(model, plan) for plan in plans if allowed.holds(allowed.cost(plan)))


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_the_search_comes_near_the_best_of_all_plans_within_the_budget(share):
    found, best = [], []
    for seed in range(8):
        model, allowed = known_errors(seed), budget(share)
        search = PlanSearch(model=model, budget=allowed, fixed=first_only(), longest=NUM_STEPS)
        plan = search.run()
        assert plan[:, 0].all()
        assert allowed.holds(allowed.cost(plan))
        assert search.error == pytest.approx(error_of(model, plan))
        found.append(search.error)
        best.append(best_of_all(model, allowed))
    assert sum(np.isclose(found, best)) >= 5
    assert (np.array(found) <= 2 * np.array(best) + 1e-12).all()


def test_the_error_of_a_plan_is_the_square_of_what_its_reuses_move_together():
    # One group whose output falls by 1 each step; every reuse of the step before moves one number by 1, or by -1 at step 3.
    outputs = np.arange(4.0)[None, :, None]
    relative = np.square(outputs[:, :, None] - outputs[:, None]).mean(-1)
    effects = np.array([[[0.0], [1.0], [1.0], [-1.0]]])
    model = error_model([effects], relative)

    def error(letters: str) -> float:
        return 3 * error_of(model, np.array([[letter == "C" for letter in letters]]))

    assert error("CCCC") == 0
    assert error("CBCC") == pytest.approx(1.0)
    assert error("CBBC") == pytest.approx((1 + 2) ** 2)
    assert error("CBCB") == pytest.approx(0.0)
    assert error("CBBB") == pytest.approx(0.0)


def test_steps_that_are_fixed_compute_and_no_output_stands_in_too_long():
    fixed = np.isin(np.arange(NUM_STEPS), (0, 4))
    plan = PlanSearch(model=known_errors(1), budget=budget(0.5), fixed=fixed, longest=2).run()
    assert plan[:, 4].all()
    for row in plan:
        computing = [*np.flatnonzero(row), NUM_STEPS]
        assert max(b - a for a, b in itertools.pairwise(computing)) <= 3


def test_a_budget_that_nothing_meets_is_told():
    with pytest.raises(
        ValueError, match=r"at most 10\.0%; the least that was found to keep no output for more than 2 steps"
    ):
        PlanSearch(model=known_errors(1), budget=budget(0.1), fixed=first_only(), longest=2).run()


def with_passes(seed: int) -> ErrorModel:
    """Two groups of sites and the whole pass, whose reuse moves less than that of the sites together."""
    sites = known_errors(seed)
    rng = np.random.default_rng(seed + 100)
    effects = np.zeros((3, NUM_STEPS, 3, NUM_STEPS))
    effects[:2, :, :2, :] = sites.effects
    single = rng.normal(size=(NUM_STEPS, 3)) * 0.01
    effects[2, :, 2, :] = single @ single.T
    return ErrorModel(effects=effects, growth=np.concatenate([sites.growth, sites.growth[:1]]))


def test_passes_are_left_out_where_that_moves_less_than_reuse_by_sites():
    def found(reuses: str):
        return search_passes_and_sites(
            with_passes(3), budget(0.5), fixed=first_only(), longest=NUM_STEPS, reuses=reuses
        )

    allowed = budget(0.5)
    both, passes, sites = found("all"), found("passes"), found("sites")
    for steps in (both, passes, sites):
        assert allowed.holds(allowed.cost(steps.computes))
        assert not (steps.computes & ~steps.passes).any()
        assert steps.passes[0]
    assert sites.passes.all()
    assert passes.passes.sum() == 3
    assert (passes.computes == passes.passes).all()
    assert both.error <= min(passes.error, sites.error)
    assert passes.error < sites.error


def test_changes_of_clips_count_alike_however_large_their_outputs_are():
    difference = np.array([[[0.0, 4.0], [4.0, 0.0]]])
    clips = [Changes(difference=difference * scale, size=np.array([[2.0, 4.0]]) * scale) for scale in (1.0, 100.0)]
    assert mean_changes(clips).difference[0, 0, 1] == pytest.approx(1.0)
