"""Foresight: the paper's rule on changes known by hand, on a block model whose outputs are known, and in whole clips."""

import dataclasses
from collections import Counter

import pytest
import torch

from pab.broadcast.foresight import ForesightDecisions, ForesightRules
from pab.broadcast.foresight_state import ForesightState
from pab.broadcast.plan import make_plan
from pab.broadcast.rules import NO_BROADCAST, rules_from_dict
from pab.broadcast.sites import Site
from pab.broadcast.state import BOTH, run_block
from pab.families.demo.family import DEMO
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import plan_for
from tests.pab import noise_worlds
from tests.pab.loop_waits import WatchedLoop
from tests.pab.worlds import OneBranchAtATime, clip, render, tiny_model
from tests.ranks import run_on_ranks

SOME = ForesightRules(gamma=2.0)
"""At which tiny models reuse some blocks at some steps."""


def decided(rules: ForesightRules, changes: list[float]) -> str:
    """The letters of one block that would change by `changes[step]` at each step since it last computed."""
    decisions = ForesightDecisions(rules=rules, num_steps=len(changes), num_blocks=1)
    letters = ""
    for step, change in enumerate(changes):
        (reuse,) = decisions.decide(step)
        if not reuse and decisions.measures(step):
            decisions.measured(step, [change])
        letters += "R" if reuse else "C"
    return letters


def test_threshold_is_the_weighted_sum_of_the_last_three_changes_of_the_warm_up():
    decisions = ForesightDecisions(rules=ForesightRules(), num_steps=40, num_blocks=2)
    assert decisions.warm_up_steps == 6
    assert [step for step in range(8) if decisions.measures(step)] == [3, 4, 5, 6, 7]
    assert [step for step in range(8) if decisions.keeps(step)] == [2, 3, 4, 5, 6, 7]
    for step, changes in ((3, (8.0, 1.0)), (4, (4.0, 1.0)), (5, (2.0, 1.0)), (7, (9.0, 9.0))):
        decisions.measured(step, changes)
    assert decisions.thresholds == pytest.approx([2.0 + 0.4 + 0.08, 1.11])
    assert decisions.changes == [9.0, 9.0]


def test_a_block_reuses_while_its_last_change_is_at_most_gamma_times_its_threshold():
    # Warm-up of 4 steps: threshold 0.3 + 1 / 10 + 1 / 100 = 0.41, half of it 0.205; steps 4, 6, 8, ... may reuse.
    changes = [9.0, 1.0, 1.0, 0.3, 0.0, 0.2, 0.0, 0.21, 0.0, 0.205, 0.0, 0.5]
    assert decided(ForesightRules(), changes) == "CCCCCCRCCCRC"
    assert decided(ForesightRules(gamma=1.0), changes) == "CCCCRCRCRCRC"


def test_reuse_ends_after_n_steps_and_every_r_steps_all_compute():
    calm = [1.0] * 4 + [0.0] * 12
    assert decided(ForesightRules(reuse_steps=2, recompute_every=3, gamma=1.0), calm) == "CCCCRRCRRCRRCRRC"
    assert decided(ForesightRules(reuse_steps=1, recompute_every=4, gamma=1.0), calm) == "CCCCRCRCRCRCRCRC"
    # What computes among the steps that may reuse is measured there, and may reuse at the next.
    lively = [1.0] * 4 + [3.0, 0.1] + [3.0] * 3
    assert decided(ForesightRules(reuse_steps=3, recompute_every=4, gamma=0.5), lively) == "CCCCCCRCC"


def test_short_clips_and_changes_that_are_no_numbers_are_computed():
    assert decided(ForesightRules(gamma=9.0), [1.0] * 4) == "CCCC"
    assert decided(ForesightRules(gamma=9.0), [float("nan")] * 8) == "CCCCCCCC"


@pytest.mark.parametrize("rules", [ForesightRules(), ForesightRules(reuse_steps=2, recompute_every=3)])
def test_the_least_share_is_reached_by_blocks_that_do_not_change(rules):
    still = decided(rules, [0.0] * 30)
    assert rules.least_share(30) == still.count("C") / 30
    assert rules.table(30).split()[2].count("?") == still.count("R")


class Block:
    """Adds the step's own number to tokens; counts its runs."""

    def __init__(self, name: str, added: list[float]):
        self.sites, self.added, self.runs = (f"{name}.attn", f"{name}.mlp"), added, Counter()

    def __call__(self, x, step, reuse, wanted):
        assert reuse == (None, None)
        assert wanted == (False, False)
        self.runs[step] += 1
        return x + self.added[step], (None, None)


def test_decisions_of_a_model_whose_changes_are_known():
    """Two blocks, each on tokens that come in as zeros, so that its output is what it adds."""
    num_steps = 12
    # Changes of the first: 1, 1, 1 (threshold 1.11), 0.01, 0.16 (at most half of it), at step 7 2.25, 0.25, 0.25, ...
    first = Block("blocks.0", [0.0, 1.0, 2.0, 3.0, 3.1, 3.5, -1.0, 5.0, 5.5, 6.0, -1.0, 9.0])
    second = Block("blocks.1", [0.0, 1.0, 2.0, 3.0, *(11.0 * step for step in range(1, 9))])
    sites = tuple(
        Site(name=name, kind=kind, stack="spatial", block=i)
        for i, block in enumerate((first, second))
        for name, kind in zip(block.sites, ("spatial", "mlp"), strict=True)
    )
    plan = make_plan(ForesightRules(), [float(1000 - step) for step in range(num_steps)], sites)
    state = ForesightState(plan=plan, rules=ForesightRules(), group=NodeGroup())
    outputs = []
    for step in range(num_steps):
        state.begin(step)
        visit = state.visit(step, BOTH)
        # The last of the two places is padding: if it counted, nothing would ever be calm.
        x = torch.zeros(1, 2, 4)
        x[:, 1] = 100.0 * step**2
        outputs += [run_block(block, x, step, visit=visit, own=1)[0, 0, 0].item() for block in (first, second)]
    assert outputs[::2] == pytest.approx([0, 1, 2, 3, 3.1, 3.5, 3.5, 5, 5.5, 6, 6, 9])
    assert sorted(first.runs) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 11]
    assert sorted(second.runs) == list(range(num_steps))
    assert state.decisions.thresholds == pytest.approx([4 * 1.11, 4 * 1.11], rel=1e-6)
    found = state.decided
    assert [found.decisions(i) for i in range(4)] == ["CCCCCCBCCCBC", "CCCCCSBCCSBC", "C" * 12, "C" * 12]
    assert found.sources[6] == (5, 5, 6, 6)
    assert found.patterns[6] == "SM 50%"
    assert not state.kept
    assert state.computed == {"spatial": 22, "mlp": 22}
    assert state.reused == {"spatial": 2, "mlp": 2}


@pytest.fixture(scope="module")
def alone():
    return render(tiny_model(), clip(num_steps=14), SOME)


def test_a_clip_reuses_some_blocks_and_is_counted_as_decided(alone):
    plan = alone.plan
    shares = {plan.decisions(i).count("B") for i in range(len(plan.sites))}
    assert len(shares) > 1, "blocks decide by themselves"
    for kind in ("spatial", "temporal", "cross", "mlp"):
        assert alone.computed[kind] == plan.computed(kind) < plan.total(kind)
        assert alone.reused[kind] == plan.total(kind) - plan.computed(kind)
    assert alone.kept_bytes_peak == 4 * 2 * 5 * 6 * 32 * 4, "one output per block: rows, frames, patches, channels"
    difference = (alone.latents - render(tiny_model(), clip(num_steps=14), NO_BROADCAST).latents).abs().max()
    assert 1e-6 < difference < 1.0


def test_the_host_waits_for_the_device_nowhere_but_before_steps_that_may_reuse(alone):
    watched = WatchedLoop(tiny_model(), torch.device("cpu"))
    assert torch.equal(render(watched, clip(num_steps=14), SOME).latents, alone.latents)
    assert watched.steps == 14


def test_rules_that_never_reuse_give_the_latents_without_broadcast_bit_by_bit():
    never = render(tiny_model(), clip(), ForesightRules(gamma=1e-9))
    assert torch.equal(never.latents, render(tiny_model(), clip(), NO_BROADCAST).latents)
    assert set(never.plan.patterns) == {"stcm"}


def test_second_clip_and_clip_after_a_failed_one_decide_like_the_first(alone):
    model, request, calls = tiny_model(), clip(num_steps=14), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("device lost")

    handle = model.transformer.temporal_blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="device lost"):
        render(model, clip(num_steps=14, seed=9), SOME)
    handle.remove()
    for _ in range(2):
        again = render(model, request, SOME)
        assert again.plan.sources == alone.plan.sources
        assert torch.equal(again.latents, alone.latents)


def test_guidance_branches_apart_decide_like_both_in_one_pass(alone):
    model, request = tiny_model(), clip(num_steps=14)
    apart = render(OneBranchAtATime(model, request), request, SOME)
    assert apart.plan.sources == alone.plan.sources
    assert (apart.latents - alone.latents).abs().max() < 1e-5


def ranks_render(mesh):
    group = open_group(device=torch.device("cpu"), **mesh)
    result = render(tiny_model(), clip(num_steps=14), SOME, group)
    worlds = noise_worlds.WORLDS.values() if mesh["cfg"] * mesh["sp"] == 2 else ()
    others = [world.render(world.model(), noise_worlds.clip(), rules=SOME, group=group) for world in worlds]
    exchanges = group.clip.exchanges.snapshot().gathers
    return [(found.latents, found.plan.sources, found.traffic) for found in (result, *others)], exchanges


MESHES = [{"dp": 1, "cfg": cfg, "sp": sp} for cfg, sp in ((1, 2), (2, 1), (2, 2))]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_several_ranks_decide_like_one(mesh, alone):
    """5 frames on 2 ranks: one rank holds a frame of padding, which must not count. All families whose blocks are ours."""
    ranks = run_on_ranks(mesh["cfg"] * mesh["sp"], ranks_render, mesh)
    expected = [alone]
    if len(ranks) == 2:
        worlds = noise_worlds.WORLDS.values()
        expected += [world.render(world.model(), noise_worlds.clip(), rules=SOME) for world in worlds]
    for found, exchanges in ranks:
        for (latents, sources, traffic), one in zip(found, expected, strict=True):
            assert sources == one.plan.sources
            assert any(letters != letters.lower() or "." in letters for letters in one.plan.patterns)
            assert ((latents - one.latents).abs().max() / one.latents.abs().max()).item() < 1e-5
            assert traffic.all_to_alls == (one.plan.all_to_alls if mesh["sp"] > 1 else 0)
        deciding = [SOME.may_reuse(step, one.plan.num_steps) for one in expected for step in range(one.plan.num_steps)]
        assert exchanges == sum(deciding), "one exchange before each step that may reuse, no other"


def test_rules_survive_a_round_trip_through_json_and_name_themselves():
    rules = ForesightRules(warm_up=0.2, reuse_steps=2, recompute_every=5, gamma=1.5)
    assert rules_from_dict(rules.to_dict()) == rules
    assert rules_from_dict({"foresight": {}}) == ForesightRules()
    digests = {dataclasses.replace(rules, **{name: value}).digest for name, value in (
        ("warm_up", 0.2), ("warm_up", 0.3), ("reuse_steps", 3), ("recompute_every", 4), ("gamma", 1.0)
    )}  # fmt: skip
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"foresight": {}, "spatial": {}}, "foresight, spatial; foresight decides alone"),
        ({"foresight": 3}, "foresight=3, needs {'warm_up'"),
        ({"foresight": {"gama": 1}}, "foresight has no 'gama'"),
        ({"foresight": {"gamma": "1"}}, "gamma='1', needs a number"),
        ({"foresight": {"reuse_steps": 1.5}}, "reuse_steps=1.5, needs a number of type int"),
        ({"foresight": {"gamma": 0}}, "gamma=0, needs a number above 0"),
        ({"foresight": {"warm_up": 2}}, "warm_up=2, allowed above 0 up to 1"),
        ({"foresight": {"reuse_steps": 2}}, "needs 1 <= reuse_steps < recompute_every"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(values, message):
    with pytest.raises(ValueError, match=message):
        rules_from_dict(values)


def test_the_plan_made_before_a_clip_is_a_bound_that_computes_everything():
    plan = plan_for(DEMO, clip(num_frames=16, height=64, width=64, num_steps=30), DEMO.presets["foresight"], "float32")
    assert len(plan.full_steps) == 30
    with pytest.raises(ValueError, match="another model takes over at step 3"):
        make_plan(ForesightRules(), [3.0, 2.0, 1.0, 0.0], DEMO.sites, cache_reset_steps=(3,))
