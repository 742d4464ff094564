"""What users are told of clips with few steps: before a run, at submit, and in every record."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pipeline.command import Command
from tests.pipeline.conftest import Manifest

PAB = ("--broadcast", "pab246")
TOLD = "broadcast pab246 with 9 steps: less is reused, 96% of the calls are computed. Its rules are made for 30 steps"


def test_reuse_that_is_held_back_is_told_in_the_dry_run_at_submit_and_in_the_record(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    url, output = manifest(2, num_steps=[9, 30]), tmp_path / "out"
    _, document = command.submit(url, output, "--dry-run", *PAB)
    (warning,) = document["warnings"]
    assert warning.startswith(f"1 clip of demo, {TOLD}")
    assert warning.endswith("use more steps, or --broadcast none")
    groups = {group["num_steps"]: group for group in document["groups"]}
    assert (groups[9]["held_back"], groups[30]["held_back"]) == (6, 0)
    assert (groups[9]["computed_share"], groups[9]["full_share"], groups[9]["full_length"]) == (0.963, 0.7456, 30)
    assert groups[30]["computed_share"] == 0.7456
    shown = command.run(*command.submit_words(url, output, "--dry-run", *PAB))
    assert f"warning: {warning}" in shown.stdout

    ran = command.run(*command.submit_words(url, output, *PAB))
    assert ran.returncode == 0
    assert f"warning: {warning}" in ran.stderr + ran.stdout
    records = [json.loads(path.read_text()) for path in (output / "records").iterdir()]
    by_steps = {record["clip"]["num_steps"]: record for record in records}
    few, full = by_steps[9], by_steps[30]
    assert few["plan"]["held_back"] == 6
    assert any(TOLD in each for each in few["warnings"])
    assert few["plan"]["digest"] == groups[9]["plan"]
    assert few["counted"]["computed"] == few["planned"]["computed"]
    assert full["plan"]["held_back"] == 0
    assert not any("held" in each or "steps compute" in each for each in full["warnings"])

    quiet = command.submit(url, tmp_path / "none", "--dry-run", "--broadcast", "none")[1]
    assert quiet["warnings"] == []
    (spread,) = command.submit(url, tmp_path / "none", "--dry-run")[1]["warnings"]
    assert spread == "1 clip of demo, broadcast half with 9 steps: nothing is reused, at its own 30 steps 50%"
