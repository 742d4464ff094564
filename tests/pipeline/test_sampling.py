"""--sampling, --flow-shift, --guidance-scale-2 and --negative-prompt: rules of rows, and what a plan makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from manifests.shards import ClipGroup
from pab.families import FAMILIES
from pab.family import Family
from pipeline.exits import UsageError
from pipeline.planning.cost import ClipCosts, clip_request
from pipeline.planning.measured import joined_measured
from pipeline.run.build import build_settings
from pipeline.run.options import choose
from pipeline.run.rules import RunRules, run_rules


def families() -> dict[str, Family]:
    """The published families, with weights that nobody looks at."""
    return {
        name: replace(family, pin=lambda weights: weights, weights_digest=lambda _: "d")
        for name, family in FAMILIES.items()
    }


def rules_of(model: str = "wan", config: Path | None = None, **flags: str) -> RunRules:
    given = {"cluster": "local", "device": "cpu", "model": model, **flags}
    return run_rules(build_settings("m.parquet", choose(given, {}, config)).render, families())


def test_flags_are_for_rows_of_the_model(tmp_path: Path) -> None:
    rules = rules_of(flow_shift="8", negative_prompt="published")
    assert rules.rows["wan"].defaults["flow_shift"] == 8.0
    assert str(rules.rows["wan"].defaults["negative_prompt"]).startswith("色调艳丽")
    assert "flow_shift" not in rules.rows["hunyuan_video"].defaults
    (tmp_path / "run.toml").write_text("flow_shift = 7.5\nguidance_scale_2 = 3")
    assert rules_of("wan22_a14b", tmp_path / "run.toml").rows["wan22_a14b"].defaults["guidance_scale_2"] == 3.0


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("wan", {"sampling": "lightning8"}, "--sampling='lightning8': wan has lightning4, dmd3; leave it out"),
        ("wan22_a14b", {"sampling": "dmd3"}, "--sampling='dmd3': wan22_a14b has lightning4"),
        ("demo", {"sampling": "lightning4"}, "--sampling='lightning4': demo has none"),
        (
            "wan",
            {"sampling": "lightning4", "broadcast": "pab2-6"},
            "--broadcast='pab2-6': sampling lightning4 reuses nothing",
        ),
        (
            "wan",
            {"sampling": "lightning4", "flow_shift": "8"},
            "--flow-shift=8: sampling lightning4 has fixed noise levels",
        ),
        ("ltx", {"flow_shift": "8"}, "--flow-shift=8: the noise levels of ltx have no such shift"),
        ("wan", {"guidance_scale_2": "3"}, "--guidance-scale-2=3: wan has one transformer and one scale"),
        ("wan", {"flow_shift": "0"}, "--flow-shift='?0'?, needs a number from 0.1 to 100"),
        ("wan", {"flow_shift": "much"}, "--flow-shift='much', needs a number from 0.1 to 100"),
        ("latte", {"negative_prompt": "published"}, "--negative-prompt published: latte publishes none"),
    ],
)
def test_flags_that_cannot_be_are_refused(model: str, flags: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rules_of(model, **flags)


def group_of(**changes: object) -> ClipGroup:
    values = {
        "model": "wan", "height": 480, "width": 832, "num_frames": 81, "num_steps": 50, "broadcast": "none", "guided": True,
    }  # fmt: skip
    return ClipGroup(**values | changes)


def test_few_steps_without_guidance_cost_a_few_passes_and_have_no_second_branch() -> None:
    rules = rules_of()
    costs = ClipCosts(rules, "bfloat16")
    full, few = group_of(), group_of(num_steps=4, guided=False, sampling="lightning4")
    assert costs.two_branches(full)
    assert not costs.two_branches(few)
    decode_s = rules.families["wan"].cost.decode_s_per_pixel * 81 * 480 * 832
    assert costs.seconds(few) - decode_s == pytest.approx((costs.seconds(full) - decode_s) * 4 / 50 / 2)
    assert costs.plan(few).timesteps == pytest.approx((1000, 937.5, 833.333, 625), abs=1e-3)
    moved = clip_request(rules.families["wan"], group_of(flow_shift=8.0))
    assert (
        rules.families["wan"].timesteps(moved, "")[25]
        > rules.families["wan"].timesteps(replace(moved, flow_shift=None), "")[25]
    )


def test_measured_times_of_clips_that_are_sampled_differently_stay_apart() -> None:
    entry = {
        "family": "wan", "device": "cpu", "precision": "float32", "num_frames": 5, "height": 32, "width": 32, "num_steps": 4,
        "guided": False, "broadcast": "none", "mesh": "cfg=1,sp=1", "batch": 1, "seconds_per_clip": 2.0,
    }  # fmt: skip
    joined = joined_measured([{"measured": [entry, entry | {"sampling": "lightning4", "seconds_per_clip": 3.0}]}])
    assert len(joined) == 2
