"""Passes in turn: one order on all ranks, the numbers of passes one by one, and exchanges beside another pass's work."""

import threading
from functools import cache, partial

import pytest
import torch

from pab.broadcast.foresight import ForesightRules
from pab.broadcast.step_rules import StepRules
from pab.execution.compiled import compile_blocks, graphs_compiled, many_graphs
from pab.parallel.exchange import Exchanges, Span, Waiting
from pab.parallel.mesh import NodeGroup, open_group
from pab.parallel.turns import in_turn
from pab.sampling.denoise import LoopSettings
from tests.pab import noise_worlds
from tests.pab.worlds import PAB246, clip, render, tiny_model
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
IN_TURN = LoopSettings(rows_in_turn=True)
BOUND = 1e-5
RULES = {
    "pab246": PAB246,
    "pab246, two steps": PAB246,
    "foresight": ForesightRules(gamma=2.0),
    "residual": StepRules(
        num_steps=6,
        groups=(),
        passes=(0, 1, 2, 5),
        residual=((3, (1.0,)), (4, (1.0,))),
    ),
}
COMPILED = "pab246, two steps"
"""What is compiled too: few graphs."""
RANKS = (2, 3)


def exchanging(told: list[str], exchanges: Exchanges, name: str, times: int) -> str:
    for number in range(times):
        told.append(f"{name}{number}")
        assert exchanges.while_under_way is not None
        exchanges.while_under_way()
    return name


def test_each_pass_goes_on_to_its_next_exchange_and_then_the_next_one_does():
    told, exchanges = [], Exchanges()
    runs = [partial(exchanging, told, exchanges, name, times) for name, times in (("a", 3), ("b", 1), ("c", 2))]
    assert in_turn(runs, exchanges, CPU) == ["a", "b", "c"]
    assert told == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert exchanges.while_under_way is None
    assert in_turn(runs[:1] and [lambda: 7], exchanges, CPU) == [7]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_pass_that_fails_ends_the_others_and_its_error_is_raised(failing):
    told, exchanges = [], Exchanges()

    def fail():
        exchanging(told, exchanges, "x", 1)
        raise ArithmeticError("in pass")

    runs = [fail if number == failing else partial(exchanging, told, exchanges, "y", 9) for number in range(3)]
    with pytest.raises(ArithmeticError, match="in pass"):
        in_turn(runs, exchanges, CPU)
    assert len(told) < 9
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_passes_compute_as_the_thread_that_asked_for_them():
    for inference in (False, True):
        with torch.inference_mode(inference):
            assert in_turn([torch.is_inference_mode_enabled] * 3, Exchanges(), CPU) == [inference] * 3


def odd(name, **others):
    """Five latent frames of 6 patches."""
    return clip(num_frames=10, height=24, width=40, num_steps=2 if name == COMPILED else 6, **others)


def render_all(compiled):
    """Of each kind of rules: two clips, whose rows run in turn where ranks share a pass; and graphs after each clip."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    group = open_group(dp=1, cfg=1, sp=world, device=CPU) if world > 1 else NodeGroup()
    model, found = tiny_model(), {}
    if compiled:
        compile_blocks(model.block_stacks, backend="eager")
    with many_graphs():
        for name, rules in RULES.items() if not compiled else [(COMPILED, PAB246)]:
            first = render(model, odd(name), rules, group, loop=IN_TURN)
            graphs = graphs_compiled()
            again = render(model, odd(name, prompt="a b"), rules, group, loop=IN_TURN)
            found[name] = first, again, graphs_compiled() - graphs
    if not compiled:
        for name, noise_world in noise_worlds.WORLDS.items():
            request = noise_worlds.clip(num_steps=6)
            found[name] = (noise_world.render(noise_world.model(), request, group=group, loop=IN_TURN),)
    return found


@cache
def rendered(ranks: int, *, compiled: bool) -> list:
    return run_on_ranks(ranks, render_all, compiled) if ranks > 1 else [render_all(compiled)]


@pytest.mark.parametrize(
    ("ranks", "compiled", "name"), [*((ranks, False, name) for ranks in RANKS for name in RULES), (2, True, COMPILED)]
)
def test_rows_in_turn_give_the_numbers_of_one_rank(ranks, compiled, name):
    alone, *_ = rendered(1, compiled=False)[0][name]
    for of_rank in rendered(ranks, compiled=compiled):
        done, again, later_graphs = of_rank[name]
        assert (done.latents - alone.latents).abs().max() < BOUND
        assert done.plan.sources == alone.plan.sources
        assert done.passes == 2
        assert done.traffic.all_to_alls == 2 * done.plan.all_to_alls > 0
        # Prompts of any length exchange the same.
        assert again.traffic.all_to_all_bytes == done.traffic.all_to_all_bytes
        assert done.waiting.exposed_s > 0
        assert done.waiting.hidden_s > 0
        assert later_graphs == 0 or name == "foresight"


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", noise_worlds.WORLDS)
def test_rows_of_other_families_too(ranks, name):
    (alone,) = rendered(1, compiled=False)[0][name]
    for of_rank in rendered(ranks, compiled=False):
        (done,) = of_rank[name]
        assert (done.latents - alone.latents).abs().max() < BOUND * alone.latents.abs().max()
        assert done.traffic.all_to_alls == 2 * done.plan.all_to_alls
        assert done.waiting.hidden_s > 0


def test_what_went_on_beside_work_is_hidden_and_what_was_waited_for_exposed():
    exchanges = Exchanges()
    exchanges.begin_timing()
    assert exchanges._spans == []
    exchanges._spans += [
        Span(begun=0.0, asked=1.0, ended=3.0, waited=3.0),  # 1 s hidden, 2 s exposed
        Span(begun=2.0, asked=5.0, ended=4.0, waited=5.0),  # begins when the first has ended: 1 s hidden
        Span(begun=6.0, asked=6.0, waited=6.5),  # nothing runs beside it
    ]
    assert exchanges.end_timing() == Waiting(exposed_s=2.5, hidden_s=2.0)
    assert exchanges.end_timing() == Waiting()
