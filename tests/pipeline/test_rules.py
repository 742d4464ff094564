"""What a run's rows may say, and what decides that two runs render the same pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.render_settings import RenderSettings
from jobs.settings import Mesh
from manifests.shards import ClipGroup
from pab.broadcast.rules import MAX_FILE_BYTES
from pab.families import FAMILIES
from pab.families.demo.family import DEMO
from pab.family import Family
from pipeline.exits import UsageError
from pipeline.planning.clip_times import CFG_EFFICIENCY, ClipTimes
from pipeline.planning.cost import ClipCosts
from pipeline.planning.figures import FiguresSource
from pipeline.run.rules import run_rules

RENDER = RenderSettings(model="demo", weights=None, broadcast=None, precision="float32", device="cpu", baseline=True)


def family(name: str = "demo", digest: str = "d1") -> Family:
    return replace(DEMO, name=name, weights_digest=lambda weights: f"{digest} of {weights}")


def missing_weights(weights: str | None) -> str:
    raise FileNotFoundError("no file other.safetensors")


ONE = {"demo": family()}


def test_identity_names_weights_and_precision() -> None:
    identities = {
        run_rules(render, {"demo": family(digest=digest)}).rows["demo"].identity()
        for digest in ("d1", "d2")
        for render in (RENDER, replace(RENDER, precision="bfloat16"), replace(RENDER, weights="elsewhere"))
    }
    assert len(identities) == 6


def test_broadcast_preset_becomes_the_default() -> None:
    rules = run_rules(replace(RENDER, broadcast="pab357"), ONE).rows["demo"]
    assert rules.defaults["broadcast"] == "pab357"
    assert rules.broadcasts["pab357"] == DEMO.presets["pab357"].digest
    assert run_rules(RENDER, ONE).rows["demo"].defaults["broadcast"] == "half"


def test_a_run_of_before_keeps_the_default_it_began_with() -> None:
    begun = run_rules(RENDER, ONE, defaults={"demo": "pab246"})
    assert begun.rows["demo"].defaults["broadcast"] == begun.families["demo"].defaults.broadcast == "pab246"
    asked = run_rules(replace(RENDER, broadcast="pab357"), ONE, defaults={"demo": "pab246"})
    assert asked.rows["demo"].defaults["broadcast"] == "pab357"
    gone = run_rules(RENDER, ONE, defaults={"demo": "a preset that is gone"})
    assert gone.rows["demo"].defaults["broadcast"] == "half"


def test_broadcast_file_becomes_the_default_and_travels_into_jobs(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"spatial": {"range": 4, "window": [100, 900]}}')
    rules = run_rules(replace(RENDER, broadcast=str(file)), ONE)
    assert rules.rows["demo"].defaults["broadcast"] == "mine"
    assert rules.job_broadcasts() == {"mine": {"spatial": {"range": 4, "window": [100, 900]}}}
    assert rules.rows["demo"].broadcasts["mine"] == rules.broadcast("demo", "mine").digest


def test_a_broadcast_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}", encoding="utf-8-sig")
    assert (
        run_rules(replace(RENDER, broadcast=str(tmp_path / "mine.json")), ONE).rows["demo"].defaults["broadcast"]
        == "mine"
    )


def test_a_broadcast_files_name_is_one_line_of_text(tmp_path: Path) -> None:
    (tmp_path / "mi\n\x1bne.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"mi\\n\\x1bne.json': the file's name is the plan's, and has a control character"
    ):
        run_rules(replace(RENDER, broadcast=str(tmp_path / "mi\n\x1bne.json")), ONE)


@pytest.mark.parametrize("name", ["absent.json", "folder.json"])
def test_a_broadcast_file_that_cannot_be_read_says_what_to_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match="name a JSON file of rules, or of a plan"):
        run_rules(replace(RENDER, broadcast=str(tmp_path / name)), ONE)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("mine.json", '{"spatial": 3}', "spatial=3, needs"),
        ("mine.json", "[1]", "holds a JSON list; needs an object such as"),
        ("mine.json", "{", "mine.json: is not JSON in UTF-8 .Expecting property name"),
        ("mine.json", "[" * 100_000, "is not JSON in UTF-8 .maximum recursion depth"),
        ("mine.json", '{"steps": {"num_steps": 1000000000000, "groups": []}}', "allowed 1 to 10000"),
        ("mine.json", " " * (MAX_FILE_BYTES + 1), "has more than 16,777,216 bytes"),
        ("pab246.json", "{}", "'pab246' is a preset of demo; rename the file"),
        ("mine.json", '{"mlp": [{"stack": "x", "blocks": [0], "skip_count": 1, "position": 0.5}]}', "mlp stack='x'"),
    ],
)
def test_a_wrong_broadcast_file_is_refused(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=told):
        run_rules(replace(RENDER, broadcast=str(tmp_path / name)), ONE)


def test_unknown_names_are_told_with_what_is_allowed() -> None:
    with pytest.raises(UsageError, match="--model 'sora' is not known, allowed: demo"):
        run_rules(replace(RENDER, model="sora"), ONE)
    with pytest.raises(UsageError, match=r"--broadcast 'pab999' is no preset of demo \(none, pab246"):
        run_rules(replace(RENDER, broadcast="pab999"), ONE)


def test_weights_belong_to_one_model() -> None:
    two = {"demo": family(), "other": family("other")}
    assert set(run_rules(RENDER, two).rows) == {"demo", "other"}
    rules = run_rules(replace(RENDER, weights="mine"), two)
    assert set(rules.rows) == {"demo"}
    assert rules.left_out == {"other": "--weights belong to --model demo; add --weights other=DIR_OR_HUB_ID"}
    both = run_rules(replace(RENDER, weights="mine", family_weights={"other": "theirs"}), two)
    assert both.left_out == {}
    identities = {name: row.identity() for name, row in both.rows.items()}
    assert [" of mine " in identities["demo"], " of theirs " in identities["other"]] == [True, True]
    assert both.pinned_weights() == {"demo": "mine", "other": "theirs"}


def test_a_family_without_its_weights_troubles_only_those_who_name_it() -> None:
    other = replace(DEMO, name="other", weights_digest=missing_weights)
    families = {"demo": family(), "other": other}
    rules = run_rules(RENDER, families)
    assert rules.left_out == {}
    with pytest.raises(FileNotFoundError, match=r"no file other\.safetensors"):
        rules.rows["other"].identity()
    assert set(rules.weights) == {"demo"}
    with pytest.raises(UsageError, match=r"--model other: no file other.safetensors"):
        run_rules(replace(RENDER, model="other"), families)


def test_cost_counts_what_the_plan_reuses() -> None:
    costs = ClipCosts(run_rules(RENDER, ONE), "float32", FiguresSource(device="cpu"))
    kind = ClipGroup(model="demo", num_frames=16, height=64, width=64, num_steps=30, guided=True, broadcast="none")
    full = costs.seconds(kind)
    tokens, cost = DEMO.num_tokens(16, 64, 64), DEMO.cost
    assert full == pytest.approx(
        30 * (cost.fixed_step_s + cost.linear_s * tokens) + cost.decode_s_per_pixel * 16 * 64 * 64
    )
    saving = replace(kind, broadcast="pab246")
    assert costs.seconds(saving) < full
    assert costs.seconds_without_broadcast(saving) == full
    assert costs.seconds(replace(kind, guided=False)) < 0.6 * full


def test_foresight_is_a_preset_and_a_file_that_names_its_parameters_in_the_digest(tmp_path: Path) -> None:
    rules = run_rules(replace(RENDER, broadcast="foresight"), ONE)
    assert rules.rows["demo"].defaults["broadcast"] == "foresight"
    digests = {rules.rows["demo"].broadcasts["foresight"]}
    file = tmp_path / "calm.json"
    for gamma in (0.25, 1.0):
        file.write_text(f'{{"foresight": {{"gamma": {gamma}}}}}')
        own = run_rules(replace(RENDER, broadcast=str(file)), ONE)
        digests.add(own.rows["demo"].broadcasts["calm"])
    assert len(digests) == 3
    assert own.job_broadcasts() == {
        "calm": {"foresight": {"warm_up": 0.15, "reuse_steps": 1, "recompute_every": 2, "gamma": 1.0}}
    }
    file.write_text('{"foresight": {}}')
    same = run_rules(replace(RENDER, broadcast=str(file)), ONE).rows["demo"].broadcasts
    assert same["calm"] == same["foresight"], "the digest is of the rules, not of their name"


def test_foresight_is_refused_where_no_block_outputs_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "calm.json"
    file.write_text('{"foresight": {"gamma": 1.0}}')
    modules = replace(family("modules"), keeps_blocks=False, presets={"none": DEMO.presets["none"]})
    both = {"demo": family(), "modules": modules}
    with pytest.raises(UsageError, match=r"keeps outputs of whole blocks, modules those of .* presets \(none\)"):
        run_rules(replace(RENDER, model="modules", broadcast=str(file)), both)
    rows = run_rules(replace(RENDER, broadcast=str(file)), both).rows
    assert set(rows["modules"].broadcasts) == {"none"}
    assert rows["modules"].defaults["broadcast"] == DEMO.defaults.broadcast
    assert rows["demo"].defaults["broadcast"] == "calm"


def test_what_foresight_will_reuse_is_planned_as_nothing() -> None:
    costs = ClipCosts(run_rules(RENDER, ONE), "float32")
    kind = ClipGroup(model="demo", num_frames=16, height=64, width=64, num_steps=30, guided=True, broadcast="none")
    assert costs.seconds(replace(kind, broadcast="foresight")) == costs.seconds(kind)


def test_compiled_blocks_are_another_identity_and_the_plain_way_is_none() -> None:
    plain = run_rules(RENDER, ONE).rows["demo"].identity()
    assert plain == "weights d1 of None precision float32"
    assert run_rules(replace(RENDER, compile=True), ONE).rows["demo"].identity() == f"{plain} compiled"
    cudnn = replace(RENDER, compile=True, device="cuda", attention="cudnn")
    assert run_rules(cudnn, ONE).rows["demo"].identity() == f"{plain} compiled attention cudnn"
    kernels = replace(RENDER, compile=True, device="cuda", precision="bfloat16")
    fused = run_rules(kernels, {"demo": replace(family(), fused_kernels=True)}).rows["demo"].identity()
    assert fused == run_rules(kernels, ONE).rows["demo"].identity() + " kernels"
    assert run_rules(replace(RENDER, keep="int8"), ONE).rows["demo"].identity() == f"{plain} keep int8"
    library = {"demo": replace(family(), compiles=False)}
    assert run_rules(replace(RENDER, compile=True), library).rows["demo"].identity() == plain


def test_the_quality_of_videos_is_part_of_the_identity_and_the_usual_one_is_not_named() -> None:
    identities = [run_rules(replace(RENDER, crf=crf), ONE).rows["demo"].identity() for crf in (18, 23)]
    assert identities == ["weights d1 of None precision float32", "weights d1 of None precision float32 crf 23"]


def test_a_family_that_is_told_its_guidance_costs_one_pass_and_shares_none() -> None:
    told = {"demo": replace(DEMO, embedded_guidance=True, weights_digest=lambda _weights: "0" * 16)}
    one, two = ClipCosts(run_rules(RENDER, told), "float32"), ClipCosts(run_rules(RENDER, ONE), "float32")
    kind = ClipGroup(model="demo", num_frames=16, height=64, width=64, num_steps=30, guided=True, broadcast="none")
    assert one.seconds(kind) == one.seconds(replace(kind, guided=False)) == two.seconds(kind)
    assert (one.two_branches(kind), two.two_branches(kind)) == (False, True)
    mesh = Mesh(dp=2, cfg=2)
    assert ClipTimes(one).per_clip(kind, mesh).seconds == one.seconds(kind)
    assert ClipTimes(two).per_clip(kind, mesh).seconds == pytest.approx(two.seconds(kind) / (2 * CFG_EFFICIENCY))


def test_every_family_says_how_much_of_a_prompt_it_reads() -> None:
    assert [name for name, family in FAMILIES.items() if not family.text_tokens] == []
