"""Ranks that share a clip record its loop: they give one rank's numbers, and count what they exchange again."""

from functools import cache

import pytest
import torch
import torch.distributed as dist

from pab.broadcast.step_rules import StepRules
from pab.families import FAMILIES
from pab.family import ClipRequest
from pab.parallel.exchange import Exchanges, Recorded, Span, Traffic, Waiting
from pab.parallel.mesh import Axis, NodeGroup, open_group
from pab.sampling.denoise import Denoised, LoopSettings, plan_for, records_loop
from pab.sampling.recorded_loop import LoopRecorder, run_again
from tests.pab.worlds import PAB246, clip, render, tiny_model
from tests.ranks import run_on_ranks

RULES = {
    "pab246": PAB246,
    "residual": StepRules(num_steps=12, groups=(), passes=(0, 1, 2, 5, 8, 11), residual=((3, (1.0,)), (4, (1.0,)))),
}
MESHES = {"cfg2": (2, 1), "sp2": (1, 2), "sp3": (1, 3), "cfg2 sp2": (2, 2)}
IN_TURN = "sp2 in turn"
BOUND = 1e-5


def requests() -> list[ClipRequest]:
    """Clips of one kind, of five latent frames: three ranks have parts of different sizes."""
    return [clip(prompt=prompt, seed=seed) for prompt, seed in (("a", 1), ("b c", 2), ("d e f", 3), ("b c", 2))]


def render_all(cfg: int, sp: int, rows_in_turn: bool = False) -> dict[str, tuple[list[Denoised], list[Denoised], int]]:
    """By rules: all clips plainly, all with a recorder, and how many recordings there are."""
    group = open_group(dp=1, cfg=cfg, sp=sp, device=torch.device("cpu")) if dist.is_initialized() else NodeGroup()
    model, found = tiny_model(), {}
    for name, rules in RULES.items():
        records = LoopRecorder(capture=lambda: run_again)
        plain = [
            render(model, request, rules, group, loop=LoopSettings(rows_in_turn=rows_in_turn)) for request in requests()
        ]
        settings = LoopSettings(recorder=records, rows_in_turn=rows_in_turn)
        recorded = [render(model, request, rules, group, loop=settings) for request in requests()]
        found[name] = plain, recorded, records.recordings
    return found


@cache
def rendered(mesh: str) -> list[dict[str, tuple[list[Denoised], list[Denoised], int]]]:
    cfg, sp = (1, 2) if mesh == IN_TURN else MESHES[mesh]
    return run_on_ranks(cfg * sp, render_all, cfg, sp, mesh == IN_TURN)


@cache
def alone() -> dict[str, tuple[list[Denoised], list[Denoised], int]]:
    return render_all(1, 1)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("mesh", [*MESHES, IN_TURN])
def test_replayed_clips_of_ranks_are_the_clips_of_one_rank(mesh: str, name: str) -> None:
    expected, _, _ = alone()[name]
    for of_rank in rendered(mesh):
        plain, recorded, recordings = of_rank[name]
        assert recordings == 1
        for mine, beside, one in zip(recorded, plain, expected, strict=True):
            assert (mine.latents - one.latents).abs().max() < BOUND
            assert (mine.computed, mine.reused) == (beside.computed, beside.reused)
            # Texts are as long as they can be, and that is not exchanged: the bytes are those of a plain loop.
            assert mine.traffic == beside.traffic
            assert mine.kept_bytes_peak == beside.kept_bytes_peak
            assert (mine.waiting.exposed_s > 0) == (beside.waiting.exposed_s > 0)
        # The second was recorded, the fourth replayed.
        assert torch.equal(recorded[1].latents, recorded[3].latents)


@pytest.mark.parametrize("mesh", ["sp2", "cfg2 sp2", IN_TURN])
def test_what_is_exchanged_is_counted_by_every_replay(mesh: str) -> None:
    for of_rank in rendered(mesh):
        _, recorded, _ = of_rank["pab246"]
        for done in recorded:
            rows = 2 if mesh == IN_TURN else 1
            assert done.traffic.all_to_alls == rows * done.plan.all_to_alls > 0
            assert (done.waiting.hidden_s > 0) == (mesh == IN_TURN)


def test_a_graph_that_calls_nothing_counts_and_times_by_what_was_recorded() -> None:
    axis = Exchanges()
    axis.begin_timing()
    before = axis.snapshot()
    axis.count_gather(10)
    spans = (Span(begun=0.0, asked=1.0, ended=3.0, waited=2.5),)
    assert axis.take_back(before) == Recorded(Traffic(gathers=1, gather_bytes=10), ())
    assert axis.since(before) == Traffic()
    axis.replayed(before, Recorded(Traffic(gathers=1, gather_bytes=10), spans))
    assert axis.since(before) == Traffic(gathers=1, gather_bytes=10)
    assert axis.end_timing() == Waiting(exposed_s=1.5, hidden_s=1.5)
    # The next clip's times are of its own replay, not of two clips.
    axis.begin_timing()
    axis.replayed(before, Recorded(Traffic(gathers=1, gather_bytes=10), spans))
    assert axis.end_timing() == Waiting(exposed_s=1.5, hidden_s=1.5)


def test_loops_of_ranks_and_of_large_clips_are_recorded_where_that_is_asked() -> None:
    family = FAMILIES["open_sora"]
    large = clip(num_frames=51, height=480, width=848, num_steps=30)
    plan = plan_for(family, large, family.presets["pab246"], "bfloat16")
    shared = NodeGroup(clip=Axis(size=2))
    assert not records_loop(large, family, plan, shared)
    assert records_loop(large, family, plan, shared, all_loops=True)
    assert records_loop(large, family, plan, NodeGroup(), all_loops=True)
