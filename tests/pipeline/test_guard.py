"""The guard as users meet it: flags, what a dry run tells of it, and digests that it does not change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.render_settings import RenderSettings
from pab.families.demo.family import DEMO
from pab.families.open_sora.family import OPEN_SORA
from pipeline.run.rules import run_rules
from tests.pipeline.command import Command
from tests.pipeline.conftest import Manifest

RENDER = RenderSettings(model="demo", weights=None, broadcast=None, precision="float32", device="cpu")


def dry_run(command: Command, url: Path, output: Path, *flags: str) -> list[str]:
    return [
        "submit", str(url), "--output", str(output), "--weights", str(command.weights), "--cluster", "local",
        "--device", "cpu", "--no-dask", "--dry-run", *flags,
    ]  # fmt: skip


def test_a_dry_run_tells_the_floor_and_what_is_rendered_twice(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    url, output = manifest(4, num_steps=[9] * 4, broadcast=["pab246", "pab246", "pab246", "none"]), tmp_path / "out"
    code, document = command.json(*dry_run(command, url, output))
    guard = document["guard"]
    assert code == 0
    assert (guard["min_quality"], guard["samples_per_plan_and_job"], guard["samples"]) == ("auto", 2, 2)
    assert guard["floors"]["demo"].startswith("at least PSNR 26 dB, VMAF 50, and no new alarm (docs/quality.md")
    assert 0.1 < guard["share"] < 0.6
    shown = command.run(*dry_run(command, url, output, "--quality-samples", "3", "--min-quality", "PSNR=30"))
    assert "quality of demo: at least PSNR 30 dB, and no new alarm (--min-quality)\n" in shown.stdout
    assert "rendered twice, with and without reuse: at most 3 clips (3 of each plan of a job), " in shown.stdout
    code, off = command.json(*dry_run(command, url, output, "--no-baseline"))
    assert (off["guard"]["samples"], off["guard"]["floors"]) == (0, {"demo": "off"})


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--min-quality", "26"), "--min-quality='26', needs psnr=0..100 in dB, ssim=0..1 or vmaf=0..100"),
        (("--quality-samples", "0"), "--quality-samples='0', needs a whole number from 1 to 16"),
        (
            ("--min-quality", "psnr=26", "--no-baseline"),
            "--min-quality=psnr=26 needs samples that are rendered twice, and --no-baseline renders none",
        ),
    ],
)
def test_a_wrong_flag_is_refused(
    command: Command, manifest: Manifest, tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    ran = command.run(*dry_run(command, manifest(1), tmp_path / "out", *flags))
    assert ran.returncode == 2
    assert told in ran.stderr


def test_a_step_down_stands_in_the_last_lines_of_submit_in_status_and_on_the_page(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    url, output = manifest(2, num_steps=[20] * 2, broadcast=["pab579"] * 2), tmp_path / "out"
    words = dry_run(command, url, output, "--min-quality", "psnr=100")
    ran = command.run(*(word for word in words if word != "--dry-run"))
    assert ran.returncode == 0
    told = "STEPPED DOWN, 2 clips rendered with a milder plan: pab579 at 20 steps is none in job-00000"
    assert f"guard      {told}" in ran.stdout
    assert f"guard      {told}" in command.run("status", str(output)).stdout
    assert told in (output / "reports/run.html").read_text()
    document = json.loads((output / "reports/run.json").read_text())
    assert document["guard"]["clips"] == 2
    # Submitting again renders nothing: the key of a clip is what was asked for.
    again = command.json(*(word for word in words if word != "--dry-run"))[1]
    assert (again["rendered_now"], again["recorded_before"]) == (0, 2)


def test_the_guard_is_not_part_of_digests() -> None:
    for changes in ({"min_quality": "psnr=30"}, {"min_quality": "off"}, {"quality_samples": 3}):
        one, other = (run_rules(render, {"demo": DEMO}).rows["demo"] for render in (RENDER, replace(RENDER, **changes)))
        assert one.identity() == other.identity()
        assert dict(one.broadcasts) == dict(other.broadcasts)


def test_a_familys_floor_lets_its_published_presets_pass() -> None:
    # The paper's table 1, averages of PAB246, 357 and 579.
    assert OPEN_SORA.floor.psnr_db is not None
    assert OPEN_SORA.floor.psnr_db < 23.6
