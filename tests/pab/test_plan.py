import pytest

from pab.broadcast.plan import make_plan
from pab.broadcast.rules import NO_BROADCAST, AttentionRule, MlpRule, pyramid, rules_from_dict
from pab.broadcast.sites import Site
from pab.families.open_sora.sites import stdit3_sites
from pab.sampling.rectified_flow import round_to, size_shift, timesteps

WINDOW = (450, 930)
SITES = stdit3_sites(2)


def levels_480p() -> list[float]:
    shift = size_shift(height=480, width=854, num_frames=51, precision="bfloat16")
    return [round_to("bfloat16", level) for level in timesteps(30, shift=shift)]


def test_computed_counts_are_those_of_the_paper():
    for ranges, counts in {(2, 4, 6): (21, 17, 16), (3, 5, 7): (19, 17, 15), (5, 7, 9): (17, 15, 15)}.items():
        plan = make_plan(pyramid(*ranges, window=WINDOW), levels_480p(), SITES)
        per_site = {kind: plan.total(kind) // 30 for kind in ("spatial", "temporal", "cross")}
        assert tuple(plan.computed(kind) // sites for kind, sites in per_site.items()) == counts


def test_reuse_takes_the_last_computed_output_also_from_before_the_window():
    site = Site(name="a", kind="spatial", stack="spatial", block=0)
    plan = make_plan(pyramid(3, None, None, window=(0, 800)), [1000, 900, 700, 600, 500, 400], [site])
    assert [row[0] for row in plan.sources] == [0, 1, 1, 3, 3, 3]


def test_window_bounds_are_strict_and_taken_from_the_whole_timestep():
    rule = AttentionRule(range_steps=2, low=450, high=930)
    assert not rule.reuses(1, 930.7)
    assert rule.reuses(1, 929.9)
    assert not rule.reuses(1, 450.9)
    assert rule.reuses(1, 451.0)
    assert not rule.reuses(2, 700.0)


def test_first_step_always_computes():
    plan = make_plan(pyramid(4, 4, 4, window=(0, 1000)), [700.0, 600.0], SITES)
    assert set(plan.sources[0]) == {0}


def test_positions_of_mlp_rules_give_the_published_decisions_at_480p():
    published = [MlpRule(stack="spatial", blocks=(0,), skip_count=2, timestep=t) for t in (676, 788, 864)]
    by_position = [MlpRule(stack="spatial", blocks=(0,), skip_count=2, position=p / 30) for p in (13, 17, 21)]
    rules = [pyramid(2, 4, 6, window=WINDOW, mlp=mlp) for mlp in (published, by_position)]
    plans = [make_plan(rule, levels_480p(), SITES) for rule in rules]
    assert plans[0].sources == plans[1].sources
    assert plans[0].decisions(plans[0].index["spatial_blocks.0.mlp"]) == "CCCCCCCCCCCCCSBBCSBBCSBBCCCCCC"


def test_a_key_timestep_that_repeats_computes_again_and_later_steps_take_the_latest() -> None:
    rule = MlpRule(stack="spatial", blocks=(0,), skip_count=2, timestep=864)
    plan = make_plan(pyramid(None, None, None, window=WINDOW, mlp=[rule]), [900, 864, 864, 860, 860, 850], SITES)
    site = plan.index["spatial_blocks.0.mlp"]
    assert plan.decisions(site) == "CCSBBC"
    assert [row[site] for row in plan.sources] == [0, 1, 2, 2, 2, 5]


def test_of_overlapping_keys_the_first_in_order_decides_also_for_blocks_that_it_leaves_out() -> None:
    mlp = [
        MlpRule(stack="spatial", blocks=(0,), skip_count=3, timestep=800),
        MlpRule(stack="spatial", blocks=(0, 1), skip_count=2, timestep=700),
    ]
    plan = make_plan(pyramid(None, None, None, window=WINDOW, mlp=mlp), [800, 700, 600, 500, 400], SITES)
    decided = [[row[plan.index[f"spatial_blocks.{block}.mlp"]] for row in plan.sources] for block in (0, 1)]
    assert decided == [[0, 1, 0, 0, 4], [0, 1, 2, 3, 4]]


def test_rules_by_position_leave_other_blocks_to_the_rules_behind_them() -> None:
    mlp = [
        MlpRule(stack="spatial", blocks=(0,), skip_count=2, position=0.2),
        MlpRule(stack="spatial", blocks=(1,), skip_count=1, position=0.2),
    ]
    plan = make_plan(pyramid(None, None, None, window=WINDOW, mlp=mlp), [800, 700, 600, 500, 400], SITES)
    decided = [[row[plan.index[f"spatial_blocks.{block}.mlp"]] for row in plan.sources] for block in (0, 1)]
    assert decided == [[0, 1, 1, 1, 4], [0, 1, 1, 3, 4]]


def test_mlp_key_near_the_end_reuses_only_steps_that_exist():
    rule = MlpRule(stack="spatial", blocks=(0,), skip_count=5, position=0.9)
    levels = [float(level) for level in range(1000, 0, -100)]
    plan = make_plan(pyramid(None, None, None, window=WINDOW, mlp=[rule]), levels, SITES)
    assert plan.decisions(plan.index["spatial_blocks.0.mlp"]) == "CCCCCCCCCC"


def test_kept_outputs_have_a_last_use():
    plan = make_plan(pyramid(2, 4, 6, window=WINDOW), levels_480p(), SITES)
    for index in range(len(SITES)):
        kept = [step for step in range(30) if plan.keeps(step, index)]
        freed = [step for step in range(30) if plan.reuses(step, index) and plan.is_last_use(step, index)]
        assert len(kept) == len(freed)


def test_no_rules_compute_everything():
    plan = make_plan(NO_BROADCAST, levels_480p(), SITES)
    assert plan.full_steps == tuple(range(30))
    assert set(plan.patterns) == {"stcm"}


def test_reference_schedules_use_few_step_patterns():
    plan = make_plan(pyramid(2, 4, 6, window=WINDOW), levels_480p(), SITES)
    assert len(set(plan.patterns)) <= 6


def test_digest_changes_with_any_decision():
    plans = [make_plan(pyramid(*r, window=WINDOW), levels_480p(), SITES) for r in ((2, 4, 6), (2, 4, 5))]
    assert plans[0].digest != plans[1].digest


def test_table_shows_every_kind():
    table = make_plan(pyramid(2, 4, 6, window=WINDOW), levels_480p(), SITES).table()
    assert "spatial            2  CCCCCCCCCBCBCBCBCBCBCBCBCBCCCC" in table
    assert "patterns" in table


def test_rules_survive_a_round_trip_through_json():
    rules = pyramid(2, 4, 6, window=WINDOW, mlp=[MlpRule(stack="temporal", blocks=(0, 1), skip_count=2, position=0.5)])
    again = rules_from_dict(rules.to_dict())
    assert again == rules
    assert again.digest == rules.digest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spatail": {}}, "unknown key 'spatail', allowed spatial, temporal, cross, mlp"),
        ({"spatial": {"range": 2}}, r"spatial=.*needs .*window"),
        ({"cross": {"range": 0, "window": [1, 2]}}, "range=0, needs 1"),
        ({"cross": {"range": 2, "window": [900, 450]}}, "900..450 is empty"),
        ({"mlp": 3}, "mlp=3, needs a list of entries"),
        ({"mlp": [{"stack": "spatial", "blocks": [0], "skip_count": 2}]}, "exactly one of timestep and position"),
        ({"mlp": [{"stack": "spatial", "blocks": [0], "skip_count": 2, "position": 1.5}]}, "position=1.5"),
    ],
)
def test_wrong_rules_say_what_is_allowed(values, message):
    with pytest.raises(ValueError, match=message):
        rules_from_dict(values)
