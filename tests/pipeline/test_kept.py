"""Kept outputs that fit: what is weighed beside meshes, what is never changed unasked, and that the choice is the run's."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.render_settings import KeepChoice, RenderSettings
from jobs.settings import Mesh
from manifests.shards import ClipGroup
from pab.broadcast.rules import BroadcastRules, rules_from_dict
from pab.broadcast.step_rules import StepRules
from pab.families.demo.family import DEMO
from pab.families.latte.family import LATTE
from pab.families.wan.family import WAN_14B
from pab.family import Family, figures_document
from pipeline.exits import UsageError
from pipeline.planning.clip_times import ClipTimes
from pipeline.planning.cost import ClipCosts
from pipeline.planning.figures import FiguresSource
from pipeline.planning.kept import ways_of
from pipeline.planning.mesh import MeshChoice, MeshQuestion, choose_mesh, mesh_table
from pipeline.run.rules import RunRules, run_rules
from tests.pipeline.command import Command
from tests.pipeline.conftest import Manifest

P480, P720 = (480, 832), (720, 1280)


def rules_of(family: Family, **changes: object) -> tuple[RunRules, RenderSettings]:
    known = replace(family, weights_digest=lambda _weights: "0" * 16, pin=lambda weights: weights)
    render = RenderSettings(model=family.name, precision="bfloat16", device="cuda", keep="auto")
    render = replace(render, **changes)
    return run_rules(render, {family.name: known}), render


def chosen(
    size: tuple[int, int], ranks: int, gb: float | None = 80, *, begun: bool = False, **changes: Any
) -> MeshChoice:
    choice, _ = asked(size, ranks, gb, begun=begun, **changes)
    return choice


def asked(
    size: tuple[int, int],
    ranks: int,
    gb: float | None,
    *,
    begun: bool = False,
    family: Family = WAN_14B,
    **changes: object,
) -> tuple[MeshChoice, MeshQuestion]:
    rules, render = rules_of(family, **changes)
    name = str(rules.rows["wan_14b"].defaults["broadcast"])
    group = ClipGroup(
        model="wan_14b", height=size[0], width=size[1], num_frames=81, num_steps=50, guided=True, broadcast=name
    )
    question = MeshQuestion(
        groups={group: 1000}, ranks=ranks, jobs=1, goal="auto", precision="bfloat16", keep="full",
        memory_bytes=None if gb is None else gb * 1e9, memory_from="--gpu-memory",
        ways={"wan_14b": ways_of(render, rules, "wan_14b", [group], begun=begun)},
    )  # fmt: skip
    times = ClipTimes(ClipCosts(rules, "bfloat16", FiguresSource(device="NVIDIA H100 80GB HBM3")))
    return choose_mesh(question, times, rules), question


def test_wan_14b_at_480p_fits_on_one_card_with_int8_as_measured_and_on_two_as_asked() -> None:
    one = chosen(P480, 1)
    assert one.kept == {"wan_14b": KeepChoice(keep="int8")}
    (facts,) = one.considered
    assert facts.memory_bytes == pytest.approx(58.2e9, rel=0.01)  # docs/performance.md
    assert (facts.fits, one.warnings) == (True, ())
    assert "keep int8" in one.reason
    assert one.told["wan_14b"].startswith("pab2-6, keep int8 (58.3 GB, ")
    assert "because pab2-6, keep full (85.2 GB" in one.told["wan_14b"]
    two = chosen(P480, 2)
    assert (two.mesh, two.kept) == (Mesh(cfg=2), {})


def test_at_720p_on_eight_cards_outputs_of_two_branches_count_and_a_mesh_is_taken_that_changes_no_pixel() -> None:
    choice = chosen(P720, 8)
    assert (choice.mesh, choice.kept, choice.warnings) == (Mesh(dp=2, cfg=2, sp=2), {}, ())
    as_asked = {str(each.way): each for each in choice.ways["wan_14b"]}
    kept = 2 * 40 * 75_600 * 5120 * 2 / 2  # two kinds of attention, half of the tokens, one branch on each rank
    weights_and_pass = 14.4e9 * 2 + 8 * 5120 * 2 * 75_600 / 2
    assert as_asked["pab2-6, keep full"].memory_bytes == pytest.approx(kept + weights_and_pass)
    (most,) = [facts for facts in choice.considered if facts.mesh.dp == 8]
    assert (most.kept["wan_14b"].way.as_asked, most.fits) == (False, True)
    assert most.clips_per_gpu_hour < 1.1 * choice.picked.clips_per_gpu_hour
    # On one card nothing that reuses in full fits at all: what is fastest of what fits is taken.
    alone = chosen(P720, 1)
    assert alone.kept["wan_14b"] == KeepChoice(keep="int8", broadcast="pab2-6-nocross")


def test_every_way_is_shown_with_its_seconds_and_memory() -> None:
    choice, question = asked(P480, 1, 80)
    lines = [line for line in mesh_table(choice, question, None) if line[2:].startswith(("pab2-6", "none"))]
    assert len(lines) == 9
    assert lines[0].split() == ["pab2-6,", "keep", "full", "195.73", "85.2", "as", "asked,", "does", "not", "fit"]
    assert lines[1].startswith("* pab2-6, keep int8 ")
    assert lines[-1].split()[:3] == ["none,", "keep", "full"]
    sizes = [each.memory_bytes or 0 for each in choice.ways["wan_14b"] if each.way.keep == "full"]
    assert sizes == sorted(sizes, reverse=True)
    json.dumps([facts.to_dict() for facts in choice.considered])


def test_what_the_user_typed_is_not_changed_but_told_with_what_would_fit() -> None:
    full = chosen(P480, 1, keep="full")
    assert full.kept == {"wan_14b": KeepChoice(keep="full", broadcast="pab2-6-nocross")}
    both = chosen(P480, 1, keep="full", broadcast="pab2-6")
    assert both.kept == {}
    (told,) = both.warnings
    assert told.startswith("wan_14b with pab2-6, keep full needs 85.2 GB of 80.0 GB (--gpu-memory); these would fit: ")
    assert "pab2-6, keep int8 (58.3 GB, 199.6 s a clip)" in told
    named = chosen(P720, 1, broadcast="pab2-6")
    assert named.kept == {}
    assert "these would fit: pab2-6-nocross, keep int8" in named.warnings[0]
    assert "use more GPUs per job" in chosen(P720, 1, 20).warnings[0]


EVERY_OTHER_PASS = StepRules(
    num_steps=50, groups=(), passes=tuple(range(0, 50, 2)), residual=tuple((step, (1.0,)) for step in range(1, 50, 2))
)


def test_a_plan_whose_residuals_stand_in_keeps_one_tensor_a_branch_and_makes_wan_14b_fit_at_720p(
    tmp_path: Path,
) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(EVERY_OTHER_PASS.to_dict()))
    named = chosen(P720, 1, broadcast=str(mine))
    assert (named.kept, named.warnings) == ({}, ())
    facts = {str(each.way): each for each in named.ways["wan_14b"]}
    weights_and_pass = 14.4e9 * 2 + 8 * 5120 * 2 * 75_600
    assert facts["mine, keep full"].memory_bytes == pytest.approx(weights_and_pass + 2 * 75_600 * 5120 * 2)
    assert facts["mine, keep full"].fits
    linear = replace(EVERY_OTHER_PASS, residual=tuple((step, ()) for step in range(3, 50, 2)))
    mine.write_text(json.dumps(linear.to_dict()))
    two = chosen(P720, 1, broadcast=str(mine))
    (most,) = [each for each in two.ways["wan_14b"] if str(each.way) == "mine, keep full"]
    assert most.memory_bytes == pytest.approx(weights_and_pass + 2 * 2 * 75_600 * 5120 * 2)


def test_a_family_s_own_plan_of_residuals_is_weighed_beside_8_bit_outputs_and_fewer_sites() -> None:
    family = replace(WAN_14B, presets={**WAN_14B.presets, "found": EVERY_OTHER_PASS})
    alone = chosen(P720, 1, family=family)
    assert alone.kept["wan_14b"] == KeepChoice(broadcast="found")
    assert "because pab2-6, keep full" in alone.told["wan_14b"]
    # On eight cards each can render clips of its own with it, which is more than 1.1 times as fast as a mesh as asked.
    eight = chosen(P720, 8, family=family)
    assert (eight.mesh, eight.kept) == (Mesh(dp=8), {"wan_14b": KeepChoice(broadcast="found")})


def test_a_run_that_began_keeps_as_it_began_and_without_a_bound_nothing_is_chosen() -> None:
    begun = chosen(P480, 1, begun=True, kept={"wan_14b": KeepChoice(broadcast="pab2-6-nocross")})
    assert begun.considered[0].kept["wan_14b"].way.broadcast == "pab2-6-nocross"
    assert chosen(P480, 1, begun=True).warnings != ()
    free = chosen(P480, 1, None)
    assert (free.kept, free.ways, free.warnings) == ({}, {}, ())


def test_rows_that_name_a_broadcast_keep_it_and_are_fitted_by_how_it_is_stored() -> None:
    # The second look of a submit: rows that name none have another broadcast by now, these do not.
    rules, render = rules_of(WAN_14B, kept={"wan_14b": KeepChoice(broadcast="pab2-6-nocross")})
    group = ClipGroup(
        model="wan_14b", height=480, width=832, num_frames=81, num_steps=50, guided=True, broadcast="pab2-6"
    )  # fmt: skip
    ways = ways_of(render, rules, "wan_14b", [group], begun=False)
    assert {(way.broadcast, way.keep) for way in ways} == {("pab2-6", "full"), ("pab2-6", "int8")}


def test_smaller_rules_keep_less_and_are_named_in_digests_and_files() -> None:
    smaller = WAN_14B.smaller("pab2-6")
    assert list(smaller) == ["pab2-6-nocross", "pab2-6-nocross-half", "pab2-6-nocross-quarter"]
    half = smaller["pab2-6-nocross-half"]
    assert half.spatial is not None
    assert half.spatial.blocks == tuple(range(20))
    assert rules_from_dict(half.to_dict()) == half
    assert isinstance(WAN_14B.presets["pab2-6"], BroadcastRules)
    digests = {rules.digest for rules in (*smaller.values(), WAN_14B.presets["pab2-6"])}
    assert len(digests) == 4
    assert WAN_14B.presets["pab2-6"].to_dict()["spatial"] == {"range": 2, "window": [100, 850]}
    assert LATTE.smaller("foresight") == {}
    assert WAN_14B.rules_named("pab2-6-nocross") == smaller["pab2-6-nocross"]
    assert WAN_14B.rules_named("pab2-6-nothing") is None


def test_a_blocks_own_rules_leave_the_other_blocks_alone(tmp_path: Path) -> None:
    file = tmp_path / "few.json"
    file.write_text('{"spatial": {"range": 2, "window": [0, 1000], "blocks": [0, 39]}}')
    rules, _ = rules_of(WAN_14B, broadcast=str(file))
    group = ClipGroup(
        model="wan_14b", height=480, width=832, num_frames=81, num_steps=50, guided=True, broadcast="few"
    )  # fmt: skip
    plan = ClipCosts(rules, "bfloat16").plan(group)
    reusing = {site.block for i, site in enumerate(plan.sites) if any(plan.reuses(step, i) for step in range(50))}
    assert (reusing, plan.kept_at_once) == ({0, 39}, 2)
    for blocks, told in (("[40]", "spatial block 40, wan_14b has 0 to 39"), ("[]", "needs some numbers of blocks")):
        file.write_text(f'{{"spatial": {{"range": 2, "window": [0, 1000], "blocks": {blocks}}}}}')
        with pytest.raises(UsageError, match=told):
            rules_of(WAN_14B, broadcast=str(file))


def test_a_choice_is_part_of_the_digest_like_the_same_setting_typed() -> None:
    typed, _ = rules_of(WAN_14B, keep="int8")
    for kept, broadcast in (
        (KeepChoice(keep="int8"), "pab2-6"),
        (KeepChoice(broadcast="pab2-6-nocross"), "pab2-6-nocross"),
    ):
        rules, render = rules_of(WAN_14B, kept={"wan_14b": kept})
        row = rules.rows["wan_14b"]
        assert row.defaults["broadcast"] == broadcast
        assert render.execution(WAN_14B).keep == kept.keep
        if kept.keep == "int8":
            assert row.identity() == typed.rows["wan_14b"].identity()
    unchanged, _ = rules_of(WAN_14B, kept={})
    asked_full, _ = rules_of(WAN_14B, keep="full")
    assert unchanged.rows["wan_14b"].identity() == asked_full.rows["wan_14b"].identity()


def test_a_run_on_a_small_device_renders_as_chosen_and_goes_on_with_it(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    assert DEMO.cost.memory is not None
    # Tokens as wide as those of a model that fills a card.
    memory = replace(DEMO.cost.memory, width=4_000_000, widths_per_token=0.0)
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps(figures_document({"demo": [replace(DEMO.cost, measured="a test", memory=memory)]})))
    url, output = manifest(1, num_steps=[14]), tmp_path / "out"
    flags = ("--broadcast", "pab246", "--figures", str(figures))
    _, shown = command.submit(url, output, "--dry-run", *flags, "--gpu-memory", "100000")
    sizes = {(each["broadcast"], each["keep"]): each["memory_bytes"] for each in shown["kept"]["demo"]}
    assert shown["times"] == "from figures measured on a test"
    room = round(sizes["pab246", "int8"] / 1e9) + 3
    assert sizes["pab246", "full"] > room * 1e9
    words = command.submit_words(url, output, *flags, "--gpu-memory", str(room))
    ran = command.run(*words)
    assert ran.returncode == 0, ran.stderr
    assert "kept outputs of demo: pab246, keep int8 (" in ran.stderr + ran.stdout
    (path,) = (output / "records").iterdir()
    record = json.loads(path.read_text())
    assert (record["execution"]["keep"], record["clip"]["broadcast"]) == ("int8", "pab246")
    run = json.loads((output / "run.json").read_text())
    assert run["kept"] == {"demo": asdict(KeepChoice(keep="int8"))}
    assert run["pixels"]["--keep"] == "int8"
    # From a machine with more memory, or one that is not known, the same clip is meant.
    _, again = command.submit(url, output, "--dry-run", "--broadcast", "pab246")
    assert (again["recorded"], again["to_render"]) == (1, 0)
    code, refused = command.submit(url, output, "--keep", "full")
    assert code != 0
    assert "--keep was int8, now full" in refused["error"]["message"]
