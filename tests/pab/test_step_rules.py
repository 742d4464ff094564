"""A plan told step by step: what it decides, how it spreads over other numbers of steps, and what is wrong in a file."""

import json

import pytest

from pab.broadcast.plan import make_plan
from pab.broadcast.rules import KINDS, rules_from_dict
from pab.broadcast.sites import Site
from pab.broadcast.step_rules import StepGroup, StepRules, spread_over
from pab.families.demo.family import DEMO
from tests.pab.plan_ranks import WITHOUT_SOME_PASSES, render_plan
from tests.pab.worlds import clip, render, tiny_model
from tests.ranks import run_on_ranks

SITES = [
    Site(name=f"{stack}.{block}.{kind}", kind=kind, stack=stack, block=block)
    for block in range(3)
    for stack, kinds in (("spatial", ("spatial", "cross")), ("temporal", ("temporal", "cross")))
    for kind in kinds
]
LEVELS = [float(level) for level in range(1000, 0, -100)]


def plan_of(*groups: StepGroup, num_steps: int = 10, cache_reset_steps=()):
    return make_plan(StepRules(num_steps=num_steps, groups=groups), LEVELS, SITES, cache_reset_steps=cache_reset_steps)


def letters(plan, name: str) -> str:
    return plan.decisions(plan.index[name])


def test_a_group_computes_at_its_steps_and_what_no_group_holds_at_all():
    plan = plan_of(StepGroup(kind="cross", stack="temporal", blocks=(0, 2), compute=(0, 1, 4, 8)))
    assert letters(plan, "temporal.0.cross") == letters(plan, "temporal.2.cross") == "CCBBCBBBCB"
    for name in ("temporal.1.cross", "spatial.0.cross", "temporal.0.temporal"):
        assert letters(plan, name) == "C" * 10
    assert [row[plan.index["temporal.0.cross"]] for row in plan.sources] == [0, 1, 1, 1, 4, 4, 4, 4, 8, 8]


def test_at_steps_without_a_pass_nothing_is_computed_or_handed_out():
    group = StepGroup(kind="cross", stack="spatial", compute=(0, 1, 7))
    rules = StepRules(num_steps=10, groups=(group,), passes=(0, 1, 4, 5, 7, 9))
    plan = make_plan(rules, LEVELS, SITES)
    assert sorted(plan.skipped) == [2, 3, 6, 8]
    assert letters(plan, "spatial.0.cross") == "CC--BB-C-B"
    assert letters(plan, "spatial.0.spatial") == "CC--CC-C-C"
    cross, whole = plan.index["spatial.0.cross"], plan.index["spatial.0.spatial"]
    # What is kept is freed at its last use in a pass; what only steps without a pass would use is not kept.
    assert plan.last_uses[cross] == {1: 5, 7: 9}
    assert plan.last_uses[whole] == {}
    assert plan.computed("spatial") == 6 * 3
    assert plan.digest != make_plan(StepRules(num_steps=10, groups=(group,)), LEVELS, SITES).digest
    assert rules_from_dict(json.loads(json.dumps(rules.to_dict()))) == rules
    assert rules.skipped(20) == {4, 5, 6, 7, 12, 13, 16, 17}
    assert make_plan(rules, LEVELS, SITES, cache_reset_steps=(6,)).skipped == {2, 3, 8}


def test_nothing_is_reused_across_a_fresh_step():
    plan = plan_of(StepGroup(kind="cross", stack="spatial", compute=(0, 8)), cache_reset_steps=(5,))
    assert letters(plan, "spatial.0.cross") == "CBBBBCBBCB"


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(10, "CCBBCBBBCB"), (20, "CCCCBBBBCCBBBBBBCCBB"), (5, "CBCBC"), (15, "CCCBBBCCBBBBCCB"), (1, "C")],
)
def test_a_step_of_a_clip_computes_if_any_step_of_the_plan_that_it_covers_does(num_steps, expected):
    computing = spread_over((0, 1, 4, 8), 10, num_steps)
    assert "".join("C" if step in computing else "B" for step in range(num_steps)) == expected


def test_a_plan_for_other_steps_says_so_in_its_table():
    group = StepGroup(kind="spatial", stack="spatial", compute=(0, 2))
    assert "a plan for 4 steps, spread over 10" in plan_of(group, num_steps=4).table()
    assert "spread" not in plan_of(group).table()


def test_a_kind_that_decides_otherwise_in_each_stack_is_told_with_its_stack():
    table = plan_of(StepGroup(kind="cross", stack="temporal", compute=(0, 5))).table()
    assert [line.split()[:3] for line in table.splitlines()[1:5]] == [
        ["spatial", "3", "CCCCCCCCCC"], ["cross", "spatial", "3"], ["temporal", "3", "CCCCCCCCCC"],
        ["cross", "temporal", "3"],
    ]  # fmt: skip


def test_graphs_are_what_blocks_do_differently():
    assert plan_of().graphs == 2
    # Of the temporal blocks: compute all, compute and keep cross, reuse cross.
    assert plan_of(StepGroup(kind="cross", stack="temporal", compute=(0, 1, 4))).graphs == 4


def test_a_plan_comes_back_from_its_file_and_its_digest_covers_every_step():
    rules = StepRules(
        num_steps=10, family="demo", groups=(StepGroup(kind="cross", stack="temporal", blocks=(0, 2), compute=(0, 3)),)
    )
    written = json.loads(json.dumps(rules.to_dict()))
    assert rules_from_dict(written) == rules
    assert rules_from_dict({**written, "about": {"made": "today"}}).digest == rules.digest
    written["steps"]["groups"][0]["compute"][1] = 4
    assert rules_from_dict(written).digest != rules.digest


def entry(**changes):
    return {"kind": "cross", "stack": "temporal", "compute": [0, 2]} | changes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 5}, r"steps=5, needs \{'num_steps'"),
        ({"steps": {"num_steps": 4, "groups": [], "blocks": 1}}, "steps has no 'blocks'"),
        ({"steps": {"num_steps": "4", "groups": []}}, "num_steps='4'"),
        ({"steps": {"num_steps": 0, "groups": []}}, "num_steps=0, allowed 1 to 10000"),
        ({"steps": {"num_steps": 4, "groups": [entry(compute=[1, 2])]}}, r"compute=\[1, 2\], needs rising steps"),
        ({"steps": {"num_steps": 4, "groups": [entry(compute=[0, 2, 2])]}}, "needs rising steps that begin with 0"),
        ({"steps": {"num_steps": 2, "groups": [entry()]}}, "computes at step 2, allowed 0 to 1"),
        ({"steps": {"num_steps": 4, "groups": [entry(compute="all")]}}, "steps group .*'compute': 'all'"),
        ({"steps": {"num_steps": 4, "groups": [entry(blocks=[])]}}, r"blocks=\[\], needs some"),
        ({"steps": {"num_steps": 4, "groups": [entry(blocks="all")]}}, "blocks are a list of block numbers"),
        ({"steps": {"num_steps": 4, "groups": [], "passes": "all"}}, "steps passes='all'"),
        ({"steps": {"num_steps": 4, "groups": [], "passes": [1, 2]}}, r"passes=\[1, 2\], needs rising steps"),
        ({"steps": {"num_steps": 4, "groups": [], "passes": [0, 4]}}, "begin with 0, up to 3"),
        ({"steps": {"num_steps": 4, "groups": [entry()], "passes": [0, 1]}}, "at step 2, at which passes has no pass"),
        ({"steps": {"num_steps": 4, "groups": []}, "mlp": []}, "steps and mlp; steps decide alone"),
    ],
)
def test_a_wrong_plan_file_says_what_is_wrong(values, message):
    with pytest.raises(ValueError, match=message):
        rules_from_dict(values)


def test_a_message_about_a_plan_is_short_however_long_the_plan_is():
    twice = StepRules(num_steps=4, groups=(StepGroup(kind="cross", stack="temporal", compute=(0,)),) * 1000)
    assert len(twice.misfit("demo", DEMO.sites)) < 200
    with pytest.raises(ValueError, match="residual=") as told:
        rules_from_dict({"steps": {"num_steps": 4, "groups": [], "residual": ["x"] * 10_000}})
    assert len(str(told.value)) < 500


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (StepRules(num_steps=4, groups=(), family="wan"), "the plan is for family 'wan', not demo"),
        (
            StepRules(num_steps=4, groups=(StepGroup(kind="mlp", stack="spatial", compute=(0,)),)),
            "a group mlp in spatial, demo has no such sites; it has cross in spatial, cross in temporal",
        ),
        (
            StepRules(num_steps=4, groups=(StepGroup(kind="cross", stack="spatial", blocks=(2, 3), compute=(0,)),)),
            "a group cross in spatial blocks 2..3, demo has no such sites",
        ),
        (
            StepRules(num_steps=4, groups=(StepGroup(kind="cross", stack="spatial", compute=(0,)),) * 2),
            "spatial.0.cross in 2 groups: cross in spatial; cross in spatial",
        ),
    ],
)
def test_a_plan_for_other_sites_says_why(rules, message):
    assert message in (rules.misfit("demo", SITES) or "it fits")


def test_a_plan_is_not_made_of_sites_that_are_not_there():
    with pytest.raises(ValueError, match="this model has no such sites"):
        plan_of(StepGroup(kind="mlp", stack="spatial", compute=(0,)))


@pytest.mark.parametrize(("cfg", "sp"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_leave_out_the_same_passes_and_their_all_to_alls(cfg, sp):
    alone = render(tiny_model(), clip(), WITHOUT_SOME_PASSES)
    for rank in run_on_ranks(cfg * sp, render_plan, cfg, sp):
        assert (rank.latents - alone.latents).abs().max() < 1e-5
        assert rank.plan.digest == alone.plan.digest
        assert rank.traffic.all_to_alls == (rank.plan.all_to_alls * rank.passes if sp > 1 else 0)
        assert sum(rank.computed.values()) == sum(map(rank.plan.computed, KINDS)) * rank.passes
        assert sum(rank.reused.values()) == sum(map(rank.plan.total, KINDS)) * rank.passes - sum(rank.computed.values())
