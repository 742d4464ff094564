"""`calibrate` as a user runs it: from prompts to a plan file that submit takes, and what it refuses."""

from __future__ import annotations

import json
import re
import time

import pytest
import torch

from pab.broadcast.rules import rules_from_dict
from pab.families.demo.family import DEMO
from tests.pipeline.command import Command, assert_whole, records
from tests.pipeline.conftest import Manifest

SMALL = ("--clips", "1", "--held-out", "1", "--probe-every", "3")


def test_a_plan_found_on_prompts_is_rendered_and_named_by_records(command: Command, manifest: Manifest) -> None:
    rows = manifest(2)
    found = command.run(
        "calibrate", rows, "--weights", command.weights, "--output", "plans/mine.json", *SMALL, "--computed-share", "0.6"
    )  # fmt: skip
    assert (found.returncode, found.stderr.count("measuring clip")) == (0, 1)
    written = json.loads((command.folder / "plans/mine.json").read_text())
    digest = rules_from_dict(written).digest
    assert written["about"]["digest"] == digest
    assert f"plan {digest} in plans/mine.json, what was measured in plans/mine.html" in found.stdout
    assert digest in (command.folder / "plans/mine.html").read_text()
    judged = {row["broadcast"]: row for row in written["about"]["held_out"]}
    assert set(judged) == {"found", *DEMO.presets} - {"none"}
    assert judged["found"]["call_share"]["median"] <= 0.6

    output = command.folder / "out"
    dry = command.run(*command.submit_words(rows, output, "--broadcast", "plans/mine.json", "--dry-run"))
    assert "broadcast mine" in dry.stdout
    code, _ = command.submit(rows, output, "--broadcast", "plans/mine.json")
    assert code == 0
    assert_whole(output, ["c0", "c1"])
    for record in records(output).values():
        plan = record["plan"]
        assert (plan["broadcast"], plan["rules_digest"]) == ("mine", digest)
        share = sum(plan["computed"].values()) / sum(plan["total"].values())
        assert share == pytest.approx(judged["found"]["call_share"]["median"], abs=1e-5)
        counted = record["counted"]
        assert sum(counted["computed"].values()) == share * sum(
            sum(counted[what].values()) for what in ("computed", "reused")
        )  # fmt: skip


def test_a_calibration_that_is_killed_leaves_the_plan_it_had_and_says_what_it_had_not_done(
    cold_command: Command, manifest: Manifest
) -> None:
    plan = cold_command.folder / "mine.json"
    started = cold_command.start_words(
        ["calibrate", str(manifest(25)), "--weights", str(cold_command.weights), "--output", str(plan), "--clips", "1",
         "--held-out", "24", "--computed-share", "0.6", "--reuse", "passes", "--presets", "pab246"]
    )  # fmt: skip
    while started.poll() is None and not plan.exists():
        time.sleep(0.005)
    started.kill()
    _, told = started.communicate(timeout=60)
    written = json.loads(plan.read_text())
    assert rules_from_dict(written).digest == written["about"]["digest"]
    assert written["about"]["searched_psnr_db"] > 0
    assert written["about"]["held_out"] == []
    assert written["about"]["unfinished"] == ["the plan on held-out prompts", "preset pab246 on held-out prompts"]
    assert not plan.with_suffix(".html").exists(), told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clips", "2", "--held-out", "2"], "has 3 different prompts of demo, needed are 4: --clips 2"),
        (["--clips", "0"], "--clips 0, needs 1 or more"),
        (["--match", "pab9"], "--match 'pab9' is no preset of demo, allowed: none, pab246"),
        (["--computed-share", "7"], "computed_share=7.0, allowed above 0 up to 1"),
        (["--min-psnr", "-3"], "min_psnr_db=-3.0, allowed above 0"),
        (["--match", "pab246", "--min-psnr", "30"], "not allowed with argument"),
        (["--output", "plan.txt"], "--output plan.txt, needs a name that ends in .json"),
        (["--output", "pab246.json"], "'pab246' is a preset of demo; rename it"),
        (["--match", "foresight"], "match='foresight' decides while a clip is rendered"),
        (["--presets", "pab246,pab9"], "--presets 'pab9' is no preset of demo, allowed: none, pab246"),
    ],
)
def test_wrong_usage_says_what_is_wrong(
    words: list[str], message: str, manifest: Manifest, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.__main__ import main

    given = ["calibrate", str(manifest(3)), "--weights", str(command.weights)]
    output = [] if "--output" in words else ["--output", str(command.folder / "plan.json")]
    small = [] if "--clips" in words else list(SMALL)
    assert main([*given, *output, *small, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_here_is_told_in_a_line(manifest: Manifest, command: Command) -> None:
    given = ("calibrate", manifest(2), "--weights", command.weights, "--output", "plan.json", *SMALL)
    ran = command.run(*given, "--device", "cuda")
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert re.fullmatch(r"error: torch \S+ finds no GPU here: .*, or say --device cpu", ran.stderr.splitlines()[-1])


def test_a_file_that_calibrate_did_not_write_is_never_replaced(manifest: Manifest, command: Command) -> None:
    rows, folder = manifest(2), command.folder
    prompts, page, plan = folder / "prompts.json", folder / "notes.html", folder / "plan.json"
    prompts.write_text(json.dumps([{"prompt": "a red circle"}, {"prompt": "a green circle"}]))
    page.write_text("<!DOCTYPE html>\n<title>my notes</title>")
    for given, words, told in (
        (prompts, ("--output", "prompts.json"), "--output prompts.json: is the file of prompts; give another name"),
        (rows, ("--output", "prompts.json"), "--output prompts.json: exists, and calibrate did not write it"),
        (rows, ("--output", "notes.json"), "--report notes.html: exists, and calibrate did not write it"),
        (rows, ("--output", "plan.json", "--report", "./plan.json"), "--report plan.json: is --output too"),
        (
            rows,
            ("--output", "notes.html/plan.json"),
            "folder notes.html: File exists; name a folder that can be written",
        ),
    ):
        ran = command.run("calibrate", given, "--weights", command.weights, *words, *SMALL)
        assert (ran.returncode, "measuring clip" in ran.stderr) == (2, False)
        assert told in ran.stderr
    assert (json.loads(prompts.read_text())[0]["prompt"], page.read_text()[-16:]) == (
        "a red circle",
        "my notes</title>",
    )
    assert not plan.exists()


def test_a_budget_that_saves_nothing_or_that_nothing_meets_is_refused_before_measuring(
    manifest: Manifest, command: Command
) -> None:
    rows = manifest(2)
    for words, told in (
        (
            (),
            "match='half' computes everything in clips of 4 steps, so a plan for its work saves nothing; ask for a share",
        ),
        (("--computed-share", "0.001"), "no plan computes at most 0.1%: of 4 steps every plan computes 1, 25.0%"),
        (("--match", "foresight"), "match='foresight' decides while a clip is rendered"),
        (("--computed-share", "0.6", "--max-minutes", "nan"), "nan, needs more than 0 minutes"),
    ):
        ran = command.run(
            "calibrate", rows, "--weights", command.weights, "--output", "plan.json", *SMALL, *words
        )  # fmt: skip
        assert (ran.returncode, "measuring clip" in ran.stderr) == (2, False)
        assert told in ran.stderr


def test_rows_of_other_sizes_and_with_too_few_prompts_are_refused(manifest: Manifest, command: Command) -> None:
    rows = manifest(2, height=[32, 48])
    ran = command.run("calibrate", rows, "--weights", command.weights, "--output", "plan.json", *SMALL)
    assert ran.returncode == 2
    assert "clip c1 has 8 frames, 32x48, 4 steps, guidance, clip c0 has 8 frames, 32x32, 4 steps" in ran.stderr


def test_prompts_may_be_lines_of_text(command: Command) -> None:
    (command.folder / "prompts.txt").write_text("a red circle\na red circle\na green square\n")
    ran = command.run("calibrate", "prompts.txt", "--weights", command.weights, "--output", "p.json", "--clips", "2")
    assert ran.returncode == 2
    assert "prompts.txt has 2 different prompts of demo, needed are 6" in ran.stderr
