"""The residual of the block stack stands in: every family against hooks on its plain model, ranks, compiled, plan files."""

import json
from pathlib import Path

import pytest
import torch

from pab.broadcast.plan import make_plan
from pab.broadcast.residual import StandIn
from pab.broadcast.rules import KINDS, rules_from_dict
from pab.broadcast.sites import Site
from pab.broadcast.step_rules import StepRules
from pab.execution.compiled import compile_blocks, graphs_compiled, many_graphs
from pab.library.broadcast_module import CurrentPass, install_sites, place_blocks
from pab.sampling.denoise import LoopSettings, plan_for
from tests.pab.denoised import denoised, relative
from tests.pab.every_family import family, load, plain_latents, render, request_of
from tests.pab.residual_by_hand import (
    ALSO_SITES,
    BY_HAND,
    ON_RANKS,
    STANDING_IN,
    plan_of,
    predict_by_hand,
    render_residuals_on_ranks,
)
from tests.ranks import run_on_ranks

BOUND = 1e-5
LEVELS = [float(level) for level in range(1000, 0, -100)]
SITES = [Site(name=f"blocks.{i}.attn", kind="spatial", stack="spatial", block=i) for i in range(2)]


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*BY_HAND, "wan")


@pytest.mark.parametrize("name", BY_HAND)
def test_residuals_stand_in_as_by_hooks_on_the_plain_model(weights, name):
    model, plan = load(name, weights), plan_of(name, STANDING_IN)
    done = render(name, model, STANDING_IN)
    expected = plain_latents(name, model, weights, predict_by_hand(name, load(name, weights), weights, plan))
    assert relative(done.latents, expected) <= BOUND
    for kind in {site.kind for site in plan.sites}:
        assert done.computed[kind] == plan.computed(kind) * done.passes
        assert done.reused[kind] == (plan.total(kind) - plan.computed(kind)) * done.passes


def test_a_residual_takes_the_memory_of_one_output_and_is_kept_beside_those_of_sites(weights):
    model, request = load("demo", weights), request_of("demo")
    tokens = family("demo").num_tokens(request.num_frames, request.height, request.width)
    channels = model.transformer.config.hidden_size
    for rules, kept in ((STANDING_IN, 2), (ALSO_SITES, 5 + 1)):
        done = render("demo", model, rules)
        assert done.plan.kept_at_once == kept
        assert done.kept_bytes_peak == kept * 2 * tokens * channels * 4
    plan = plan_for(family("demo"), request, STANDING_IN, "float32")
    int8 = denoised(model, request, plan, loop=LoopSettings(cache_dtype="int8"))
    assert int8.kept_bytes_peak == 2 * 2 * tokens * (channels + 4)


def test_ranks_keep_their_own_part_and_exchange_nothing_where_residuals_stand_in(weights):
    found = {}
    for done in run_on_ranks(4, render_residuals_on_ranks, weights):
        found |= done
    assert {name for _, name in found} == set(ON_RANKS)
    for (mesh, name), done in found.items():
        alone = render(name, load(name, weights), STANDING_IN)
        assert relative(done.latents, alone.latents) <= BOUND, (mesh, name)
        assert done.plan.digest == alone.plan.digest
        assert sum(done.computed.values()) == sum(map(done.plan.computed, KINDS)) * done.passes
        expected = done.plan.all_to_alls * done.passes if mesh[2] > 1 else 0
        assert done.traffic.all_to_alls == expected, (mesh, name)


@pytest.mark.parametrize("name", ["demo", "wan", "hunyuan_video", "ltx2"])
def test_compiled_blocks_are_not_called_and_give_the_same_bits(weights, name):
    torch._dynamo.reset()
    eager = render(name, load(name, weights), ALSO_SITES)
    model = load(name, weights)
    with many_graphs():
        before = graphs_compiled()
        compile_blocks(model.block_stacks, backend="eager")
        done = render(name, model, ALSO_SITES)
    assert torch.equal(done.latents, eager.latents)
    assert graphs_compiled() - before <= done.plan.graphs * len(model.block_stacks)


def plan_with(*residual, resets=()):
    rules = StepRules(num_steps=10, groups=(), passes=(0, 1, 2, 5), residual=residual)
    return make_plan(rules, LEVELS, SITES, cache_reset_steps=resets)


def test_a_plan_says_which_residuals_stand_in_how_strongly_and_until_when():
    plan = plan_with((3, (0.9,)), (4, ()), (6, (1.5, -0.4)), (8, (1.0,)))
    assert plan.stand_ins == {
        3: StandIn(last=2, last_weight=0.9),
        4: StandIn(last=2, last_weight=3.0, before=1, before_weight=-2.0),
        6: StandIn(last=5, last_weight=1.5, before=2, before_weight=-0.4),
        8: StandIn(last=5),
    }
    assert plan.decisions(0) == "CCCRRCR-R-"
    assert plan.residual_uses == {2: 6, 1: 4, 5: 8}
    assert plan.kept_at_once == 2
    assert plan.patterns[2:5] == ("s", "r", "r")
    assert plan.graphs == 1
    assert plan.digest not in {
        plan_with().digest,
        plan_with((3, (0.8,)), (4, ()), (6, (1.5, -0.4)), (8, (1.0,))).digest,
    }
    assert "R residual of all blocks" in plan.table()


def test_a_residual_never_crosses_to_another_transformer():
    plan = plan_with((3, ()), (4, ()), (6, (1.5, -0.4)), (7, ()), resets=(4,))
    assert 4 not in plan.stand_ins
    assert plan.stand_ins[3].before == 1
    assert plan.stand_ins[6] == StandIn(last=5, last_weight=1.5, before=4, before_weight=-0.4)
    assert plan_with((6, (1.5, -0.4)), (7, ()), resets=(5,)).stand_ins == {
        6: StandIn(last=5, last_weight=1.1), 7: StandIn(last=5)
    }  # fmt: skip


def test_residuals_of_a_plan_spread_over_other_steps():
    rules = StepRules(num_steps=10, groups=(), passes=(0, 1, 4, 8), residual=((2, (0.8,)), (3, (1.0,)), (9, ())))
    assert rules.residual_weights(10) == dict(rules.residual)
    assert rules.residual_weights(5) == {1: (0.9,)}
    assert rules.residual_weights(20) == {4: (0.8,), 5: (0.8,), 6: (1.0,), 7: (1.0,), 18: (), 19: ()}
    assert rules.skipped(5) == {1, 3}


def test_a_plan_with_residuals_comes_back_from_its_file_and_plans_without_keep_their_digest():
    rules = StepRules(num_steps=10, groups=(), passes=(0, 1, 4), residual=((2, (0.8,)), (5, ()), (6, (1.5, -0.5))))
    written = json.loads(json.dumps(rules.to_dict()))
    assert written["steps"]["residual"] == {"2": 0.8, "5": "linear", "6": [1.5, -0.5]}
    assert rules_from_dict(written) == rules
    del written["steps"]["residual"]
    assert rules_from_dict(written).digest == "24543b118170"


@pytest.mark.parametrize(
    ("residual", "message"),
    [
        ({"2": "kept"}, "residual at step 2: 'kept', needs"),
        ({"2": [1, 2, 3]}, r"residual at step 2: \[1, 2, 3\]"),
        ({"2": float("nan")}, "residual at step 2: nan"),
        ({"two": 1.0}, "residual has the step 'two'"),
        ([2], r"residual=\[2\], needs"),
        ({"4": 1.0}, "residual at step 4, at which passes has a pass"),
        ({"12": 1.0}, "residual at step 12, allowed 1 to 9"),
        ({"1": "linear"}, "residual at step 1 needs 2 passes before it"),
    ],
)
def test_a_wrong_residual_says_what_is_wrong(residual, message):
    with pytest.raises(ValueError, match=message):
        rules_from_dict({"steps": {"num_steps": 10, "groups": [], "passes": [0, 4], "residual": residual}})


def test_blocks_that_cannot_be_left_out_are_told():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = torch.nn.Identity()

        def forward(self, x):
            return self.attn(x)

    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([Block(), Block()])})
    with pytest.raises(ValueError, match="Block number 1 has no sites, so it cannot be left out"):
        place_blocks(install_sites(model, SITES[:1], CurrentPass()), ("x",), 1)
    with pytest.raises(ValueError, match=r"block blocks\.0 takes no hidden_states, it takes x"):
        place_blocks(install_sites(model, SITES[1:], CurrentPass()), ("hidden_states",), 1)
