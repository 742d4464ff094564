"""Figures of families: how cost grows with a clip's size, whose device they are of, and the file that holds them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.shards import ClipGroup
from pab.broadcast.plan import make_plan
from pab.broadcast.rules import BroadcastRules
from pab.families import FAMILIES
from pab.families.demo.family import DEMO
from pab.families.open_sora.family import OPEN_SORA
from pab.families.open_sora_plan.family import OPEN_SORA_PLAN_V110
from pab.families.wan.family import WAN, WAN22_A14B, WAN_14B
from pab.family import Family, figures_document, read_figures
from pipeline.exits import UsageError
from pipeline.planning.cost import clip_seconds
from pipeline.planning.figures import FiguresSource, kind_of, read_figures_file

H100, H200, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-80GB"


def group_of(family: Family, **changes: object) -> ClipGroup:
    usual = family.defaults
    group = ClipGroup(
        model=family.name, num_frames=usual.num_frames, height=usual.height, width=usual.width, num_steps=usual.num_steps,
        guided=True, broadcast="none",
    )  # fmt: skip
    return replace(group, **changes)  # type: ignore[arg-type]


def step_s(family: Family, *reused: str, **size: object) -> float:
    """Returns the seconds of a step whose sites of some kinds reuse: half of two steps, less the first one, in full."""
    group = group_of(family, num_steps=2, **size)
    rule = {kind: {"range": 2, "window": [-1, 9999]} for kind in reused}
    from pab.broadcast.rules import rules_from_dict

    rules = rules_from_dict(rule) if rule else BroadcastRules()
    cost = replace(family.cost, decode_s_per_pixel=0.0)
    full, two = (
        clip_seconds(family, group, make_plan(each, (900.0, 800.0), family.sites), cost)
        for each in (BroadcastRules(), rules)
    )
    return two - full / 2


@pytest.mark.parametrize(
    ("family", "measured_ms"), [(WAN, (905, 845, 183)), (WAN_14B, (5030, 4574, 1158))], ids=lambda each: str(each)[:20]
)
def test_steps_of_wan_are_planned_as_measured(family: Family, measured_ms: tuple[int, ...]) -> None:
    size = {"height": 480, "width": 832, "num_frames": 81}
    planned = [step_s(family, *reused, **size) for reused in ((), ("cross",), ("spatial", "cross"))]
    assert [1e3 * each for each in planned] == pytest.approx(measured_ms, rel=0.005)  # docs/performance.md


def test_three_dimensional_attention_grows_with_all_tokens_and_factorised_with_a_latent_frames() -> None:
    for family in FAMILIES.values():
        size = family.defaults.num_frames, family.defaults.height, family.defaults.width
        tokens, frames = family.num_tokens(*size), family.latent_frames
        assert family.seen_tokens(*size) == (tokens if frames is None else tokens / frames(size[0])), family.name
    assert {name for name, family in FAMILIES.items() if family.latent_frames} == {
        "demo", "open_sora", "latte", "open_sora_plan_v110", "open_sora_plan_v110_221",
    }  # fmt: skip
    # Attention alone: twice the frames take four times as long in Wan, twice as long in Open-Sora.
    wan, sora = (
        replace(family, cost=replace(family.cost, linear_s=1e-30), latent_frames=family.latent_frames)
        for family in (WAN, OPEN_SORA)
    )
    ratio = step_s(wan, num_frames=81) / step_s(wan, num_frames=41)
    assert ratio == pytest.approx((21 / 11) ** 2)
    assert step_s(sora, num_frames=102) / step_s(sora, num_frames=51) == pytest.approx(2.0)
    assert step_s(OPEN_SORA) == pytest.approx(0.230, rel=0.01)  # as measured on an H200


def test_decoding_of_open_sora_plan_is_planned_as_it_was_measured() -> None:
    assert OPEN_SORA_PLAN_V110.cost.decode_s_per_pixel * 65 * 512 * 512 == pytest.approx(2.7, rel=0.01)


def test_figures_of_the_runs_own_device_are_taken_and_others_are_scaled_and_called_estimated() -> None:
    own = FiguresSource(device=H100).of(WAN_14B, "bfloat16")
    assert own == WAN_14B.figures[0]
    assert own.measured is not None
    same_speed = FiguresSource(device=H200).of(WAN_14B, "bfloat16")
    assert (same_speed.measured, same_speed.linear_s) == (None, own.linear_s)
    older = FiguresSource(device=A100).of(WAN_14B, "bfloat16")
    assert older.measured is None
    assert older.quadratic_s / own.quadratic_s == pytest.approx(989 / 312)
    assert FiguresSource().of(WAN_14B, "bfloat16") == own, "if nobody says what the jobs get, it is what was measured"
    assert FiguresSource(device=H100).of(WAN_14B, "float32").measured is None
    assert FiguresSource(device=H100).of(WAN22_A14B, "bfloat16").measured is None
    told = FiguresSource(device=A100).told(WAN_14B, "bfloat16")
    assert told.startswith("measured on one H100 80 GB")
    assert told.endswith(f"scaled to {A100} by the peak rates of both: estimated")
    assert [kind_of(name) for name in (H100, "cpu (x86_64)", "NVIDIA GH1", "NVIDIA L40S")] == [
        "H100", "cpu", "NVIDIA GH1", "L40S",
    ]  # fmt: skip


def test_the_demo_on_a_gpu_is_planned_by_what_the_host_does_in_a_step() -> None:
    group = group_of(DEMO)
    plan = make_plan(BroadcastRules(), [1.0] * group.num_steps, DEMO.sites)
    on_cpu, on_gpu = (
        clip_seconds(DEMO, group, plan, FiguresSource(device=device).of(DEMO, "float32")) for device in ("cpu", H200)
    )
    assert on_gpu == pytest.approx(group.num_steps * DEMO.cost.fixed_step_s, rel=0.01)
    assert 8 < on_cpu / on_gpu < 14  # 17 minutes told, 94 s taken


def test_what_the_user_measured_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    mine = replace(WAN_14B.figures[0], device=A100, measured="one A100", linear_s=1.0)
    file.write_text(json.dumps(figures_document({"wan_14b": [mine]})))
    own = read_figures_file(str(file), FAMILIES)
    assert FiguresSource(device=A100, own=own).of(WAN_14B, "bfloat16") == mine
    assert FiguresSource(device=H100, own=own).of(WAN_14B, "bfloat16") == WAN_14B.figures[0]


def test_all_figures_that_come_with_the_program_are_measured_and_name_families() -> None:
    files = sorted((Path(__file__).parent.parent.parent / "pab/families").glob("*/figures.json"))
    assert len(files) >= 4
    for file in files:
        for name, held in read_figures(file).items():
            assert FAMILIES[name].figures == held
            assert all(each.measured for each in held)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("{", r"--figures .*mine.json: .*write it with: python -m pipeline bench --figures FAMILY"),
        ({"format": 9}, "needs an object with format=1"),
        ({"family": "sora"}, "family 'sora' is not known, allowed: demo, "),
        ({"linear_s": -1.0}, "figures 0: linear_s=-1.0, needs a number of 0 or more"),
        ({"linear_s": 0}, "figures 0: linear_s=0, needs more than 0"),
        ({"kind_shares": {"mlp": 1.5}}, "may add up to 1 at most"),
        ({"speed": 3}, "figures 0: .*speed"),
    ],
)
def test_a_file_of_figures_that_cannot_be_used_is_refused(tmp_path: Path, change: object, told: str) -> None:
    file = tmp_path / "mine.json"
    document = json.loads(json.dumps(figures_document({"wan": WAN.figures})))
    if isinstance(change, dict):
        target = document if "format" in change else document["figures"][0]
        target.update(change)
    file.write_text(change if isinstance(change, str) else json.dumps(document))
    with pytest.raises(UsageError, match=told):
        read_figures_file(str(file), FAMILIES)
