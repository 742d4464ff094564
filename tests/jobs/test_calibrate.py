"""A plan searched on the demo model's own weights against the presets, on prompts that it was not searched on."""

import dataclasses
import json

import pytest

from jobs.calibration.calibrate import CalibrationRequest, Calibrator, Target
from jobs.calibration.plan_quality import summary, time_share
from jobs.calibration.work import Work
from jobs.reports.calibration_html import calibration_page
from jobs.reports.calibration_svg import curves, plan_grid
from pab.broadcast.plan import make_plan
from pab.broadcast.rules import NO_BROADCAST, rules_from_dict
from pab.families.demo.family import DEMO
from pab.families.demo.training.check import held_out_prompts
from pab.family import ClipRequest
from pab.sampling.denoise import plan_for
from tests.jobs.hostile import HOSTILE, assert_harmless, tree

STEPS = 10
FAMILY = dataclasses.replace(DEMO, presets={name: DEMO.presets[name] for name in ("none", "pab246")})


def requests(count: int, seed: int) -> tuple[ClipRequest, ...]:
    return tuple(
        ClipRequest(
            prompt=prompt, negative_prompt=None, seed=number, num_frames=8, height=32, width=32, fps=8, num_steps=STEPS,
            guidance_scale=4.0,
        )
        for number, (prompt, _) in enumerate(held_out_prompts(count, seed=seed))
    )  # fmt: skip


def calibrate(target: Target, keep=lambda _found: None, **changes):
    values = {
        "family": FAMILY, "weights": None, "precision": "float32", "device": "cpu", "searched": requests(1, seed=1),
        "held_out": requests(2, seed=2), "target": target, "probe_every": 3,
    } | changes  # fmt: skip
    told: list[str] = []
    return Calibrator(request=CalibrationRequest(**values), tell=told.append, keep=keep).run(), told


@pytest.fixture(scope="module")
def matched():
    return calibrate(Target(match="pab246"))


def test_the_searched_plan_computes_no_more_than_the_preset_and_is_nearer_to_no_reuse(matched):
    found, _ = matched
    searched, preset = found.rows
    assert (searched.broadcast, preset.broadcast) == ("found", "pab246")
    assert searched.call_share.median <= preset.call_share.median < 1
    assert searched.time_share.median <= preset.time_share.median + 1e-9
    assert searched.psnr_db.median > preset.psnr_db.median + 3
    assert searched.psnr_db.least > preset.psnr_db.least
    assert searched.ssim.median >= preset.ssim.median


def test_a_calibration_ends_in_a_plan_that_its_file_gives_back(matched):
    found, told = matched
    rules = rules_from_dict(json.loads(json.dumps(found.rules.to_dict())))
    assert rules.digest == found.rows[0].digest
    plan = plan_for(FAMILY, found.request.held_out[0], rules, "float32")
    assert plan.digest == found.plan.digest
    assert plan.computed_share == found.rows[0].call_share.median
    assert found.holds
    assert [line for line in told if "done, about" not in line][-2:] == [row.line() for row in found.rows]
    assert "worst" in found.rows[0].line()


def test_the_same_prompts_give_the_same_plan(matched):
    again, _ = calibrate(Target(match="pab246"))
    assert again.rules == matched[0].rules
    assert again.rows == matched[0].rows


def test_the_page_shows_the_curves_the_plan_and_every_preset(matched):
    found, _ = matched
    page = calibration_page(found, {"torch": "2.x"})
    assert page.count("<polyline") == 2 * (len(found.measured.groups) + 1) == 14
    assert page.count("<td>pab246</td>") == 1
    assert found.rules.digest in page
    for request in (*found.request.searched, *found.request.held_out):
        assert request.prompt in page


def test_hostile_text_is_told_and_does_nothing_on_the_page_of_a_calibration(matched):
    found, _ = matched
    hostile = [dataclasses.replace(clip, prompt=HOSTILE) for clip in (*found.request.searched, *found.request.held_out)]
    request = dataclasses.replace(
        found.request, searched=tuple(hostile[:1]), held_out=tuple(hostile[1:]), weights=HOSTILE, device=HOSTILE
    )
    rows = [dataclasses.replace(row, broadcast=HOSTILE, digest=HOSTILE) for row in found.rows]
    page = calibration_page(dataclasses.replace(found, request=request, rows=rows), {HOSTILE: HOSTILE})
    assert_harmless(page, shown=3 + 2 * 2 + 4)


def test_a_page_holds_no_character_that_moves_or_turns_what_is_shown(matched):
    found, _ = matched
    clip = dataclasses.replace(found.request.searched[0], prompt="red\x1b[31m\x9b1m\u202eblue\ngreen")
    request = dataclasses.replace(found.request, searched=(clip,))
    page = calibration_page(dataclasses.replace(found, request=request), {})
    assert all(one.isprintable() or one == "\n" for one in page)
    assert any("red\\x1b[31m\\x9b1m\\u202eblue\ngreen" in text for text in tree(page).itertext())


def test_leaving_out_passes_beats_reuse_by_sites_alone_and_both_beat_the_preset(matched):
    by_sites, _ = calibrate(Target(match="pab246"), reuses="sites")
    assert not by_sites.plan.without_blocks
    assert matched[0].plan.without_blocks
    both, sites, preset = matched[0].rows[0], by_sites.rows[0], by_sites.rows[1]
    assert both.psnr_db.median > sites.psnr_db.median > preset.psnr_db.median


def test_residuals_of_all_blocks_are_taken_where_they_are_nearer_than_predictions():
    half = Target(computed_share=0.5)
    (residuals, _), (passes, _) = (calibrate(half, reuses=reuses) for reuses in ("residuals", "passes"))
    assert residuals.measured.errors.kept.shape[1] == 3
    assert passes.measured.errors.kept.shape[1] == 0, "what no plan may use is not measured"
    assert residuals.searched_psnr_db >= passes.searched_psnr_db
    assert passes.plan.skipped
    assert not passes.plan.stand_ins
    for found in (residuals, passes):
        assert found.rows[0].call_share.median == 0.5


def test_a_bound_on_time_still_gives_a_plan_that_is_judged_and_says_what_it_left_out():
    found, told = calibrate(Target(match="pab246"), max_minutes=1e-6)
    assert [row.broadcast for row in found.rows] == ["found"]
    assert found.left_out[0] == "18 of 18 probes of sites"
    assert found.left_out[-1] == "preset pab246 on held-out prompts"
    assert "--max-minutes leaves out: preset pab246 on held-out prompts" in told
    assert "Left out by the bound on time: 18 of 18 probes of sites." in calibration_page(found, {})
    assert found.rows[0].call_share.median < 1


def test_the_best_plan_so_far_is_kept_with_what_is_known_of_it_and_what_is_not():
    kept = []
    found, _ = calibrate(Target(match="pab246"), kept.append, reuses="residuals")
    first, last = kept[0], kept[-1]
    assert first.rows == ()
    assert first.unfinished == (
        "1 of 2 plans", "the plan on held-out prompts", "preset pab246 on held-out prompts",
    )  # fmt: skip
    so_far = [each.searched_psnr_db for each in kept]
    assert so_far == sorted(so_far)
    assert last.unfinished == ("preset pab246 on held-out prompts",)
    assert (last.rules, last.searched_psnr_db) == (found.rules, found.searched_psnr_db)
    assert last.rows == found.rows[:1]
    assert found.unfinished == ()


def test_a_searched_bound_on_quality_keeps_only_plans_that_hold_it():
    kept = []
    found, _ = calibrate(Target(min_psnr_db=30.0), kept.append, reuses="passes")
    assert kept[-1].rules == found.rules
    assert all(each.searched_psnr_db >= 30.0 for each in kept)
    assert kept[0].unfinished[0].endswith("of 6 halvings of the work")


def test_presets_that_are_asked_for_stand_beside_the_plan_alone():
    presets = {name: DEMO.presets[name] for name in ("none", "pab246", "pab357")}
    found, _ = calibrate(
        Target(computed_share=0.5),
        family=dataclasses.replace(DEMO, presets=presets),
        reuses="passes",
        presets=("pab357", "none"),
    )
    assert [row.broadcast for row in found.rows] == ["found", "pab357"]


def test_the_clip_that_is_measured_is_the_one_without_reuse_that_plans_are_compared_with():
    searched = requests(1, seed=1)
    request = CalibrationRequest(
        family=FAMILY, weights=None, precision="float32", device="cpu", searched=searched, held_out=requests(1, seed=2),
        target=Target(match="pab246"), reuses="passes",
    )  # fmt: skip
    calibrator = Calibrator(request=request, tell=lambda _line: None)
    calibrator.measure()
    assert list(calibrator.clips.unreused) == list(searched)
    rendered, _ = calibrator.clips.render(searched[0], NO_BROADCAST)
    assert (calibrator.clips.unreused[searched[0]] == rendered).all()


def test_progress_tells_the_time_that_is_left_and_a_bound_keeps_time_for_what_comes_last():
    clock, told = [0.0], []
    work = Work(tell=told.append, max_seconds=100.0, expected=100.0, now=lambda: clock[0])
    assert work.allows(1e9), "nothing is known before the first step"
    work.begin()
    clock[0] = 20.0
    work.add(10.0)
    assert told == ["  10% done, about 180 s left"]
    assert work.allows(30.0, reserved=10.0)
    assert not work.allows(30.0, reserved=11.0)
    work.leave_out("presets", 40.0)
    assert (work.expected, work.left_out, told[-1]) == (60.0, ["presets"], "--max-minutes leaves out: presets")


def test_a_bound_on_quality_gives_the_least_work_that_holds_it():
    found, told = calibrate(Target(min_psnr_db=30.0))
    assert found.searched_psnr_db >= 30.0
    assert found.rows[0].time_share.median < 1
    assert any("of the planned time" in line for line in told)
    assert found.holds == (found.rows[0].psnr_db.median >= 30.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "one target, given are 0"),
        ({"match": "pab246", "min_psnr_db": 30.0}, "one target, given are 2"),
        ({"computed_share": 1.5}, "computed_share=1.5, allowed above 0 up to 1"),
        ({"min_psnr_db": 0.0}, "min_psnr_db=0.0, allowed above 0 up to 100 dB"),
    ],
)
def test_a_wrong_target_says_what_is_allowed(values, message):
    with pytest.raises(ValueError, match=message):
        Target(**values)


def test_shares_are_of_calls_and_of_the_planned_time_of_sites():
    plan = make_plan(DEMO.presets["pab246"], [1000 - 33 * step for step in range(30)], DEMO.sites)
    whole = make_plan(NO_BROADCAST, [1000 - 33 * step for step in range(30)], DEMO.sites)
    assert (whole.computed_share, time_share(DEMO, whole)) == (1.0, pytest.approx(1.0))
    expected = {kind: plan.computed(kind) / plan.total(kind) for kind in ("spatial", "temporal", "cross", "mlp")}
    assert time_share(DEMO, plan) == pytest.approx(
        0.2 * expected["spatial"] + 0.2 * expected["temporal"] + 0.2 * expected["cross"] + 0.4 * expected["mlp"]
    )


def test_the_calibrated_preset_of_the_demo_model_computes_less_than_pab246():
    calibrated, preset = (
        plan_for(DEMO, dataclasses.replace(requests(1, seed=1)[0], num_steps=30), DEMO.presets[name], "float32")
        for name in ("calibrated", "pab246")
    )
    assert DEMO.presets["calibrated"].digest == "566cf8b37037"
    assert calibrated.rules.misfit("demo", DEMO.sites) is None
    assert calibrated.computed_share < preset.computed_share
    assert time_share(DEMO, calibrated) < time_share(DEMO, preset)
    assert calibrated.graphs < preset.graphs


def test_a_summary_tells_median_least_and_most():
    assert dataclasses.astuple(summary([3.0, 1.0, 2.0, 8.0])) == (2.5, 1.0, 8.0)


def test_curves_lie_between_whole_powers_of_ten_and_leave_out_what_has_no_logarithm():
    picture = curves(["a", "b"], [[0.01, 1.0], [0.0, 0.1]], first_step=1, what="change")
    lines = [line.split("points='")[1].split("'")[0].split() for line in picture.split("<polyline")[1:]]
    assert [len(points) for points in lines] == [2, 1]
    assert [point.split(",")[1] for point in lines[0]] == ["230.0", "10.0"]
    assert lines[1][0].split(",")[1] == "120.0"
    assert "10<tspan dy='-5' font-size='9'>-2</tspan>" in picture


def test_the_grid_of_a_plan_has_a_cell_for_every_step():
    picture = plan_grid(["a in b"], [[True, False, False]])
    assert picture.count("step 0: a in b computed") == 1
    assert picture.count("reused</title>") == 2
    assert "1 of 3" in picture
