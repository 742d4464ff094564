"""What `report`, `status`, `watch` and `logs` tell of a finished run, and that they need nothing but its bucket."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.reports.report_gallery import COLUMNS
from tests.pipeline.command import FAST, Command, num_frames, records
from tests.pipeline.conftest import SubmittedTwice
from tests.pipeline.test_submit import second_of_three_fails

Manifest = Callable[..., Path]


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_a_run_tells_the_same_everywhere_after_it_has_ended(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    url = manifest(
        clip_id=["a", "b", "<c>".strip("<>")],
        **second_of_three_fails(tmp_path),
        num_steps=[30] * 3,
        source=[10, 20, 30],
        outcome=["x", "y", "z"],
        error=["e"] * 3,
        error_in_manifest=["older"] * 3,
    )
    with_baseline = [flag for flag in FAST if flag != "--no-baseline"]
    words = ["submit", url, "--output", output, "--weights", command.weights, *with_baseline, "--quality-samples", "1"]
    code, document = command.json(*words)
    assert code == 3

    index = pq.read_table(output / "reports/index.parquet").to_pylist()
    assert [(row["clip_id"], row["outcome"], row["source"], row["outcome_in_manifest"]) for row in index] == [
        ("a", "rendered", 10, "x"),
        ("b", "failed", 20, "y"),
        ("c", "rendered", 30, "z"),
    ]
    assert (index[0]["error"], index[0]["error_in_manifest"]) == (None, "older")
    assert index[0]["error_in_manifest_in_manifest"] == "e"
    found = records(output)
    assert index[0]["plan"] == found["a"]["plan"]["digest"]
    assert index[0]["elapsed_s"] == found["a"]["elapsed_s"]
    assert index[0]["video_url"] == f"{output}/{found['a']['video']['path']}"
    assert index[1]["video_url"] is None
    assert "it does not decode" in index[1]["error"]

    code, report = command.json("report", output)
    assert code == 0
    assert report == json.loads((output / "reports/run.json").read_text())
    assert report["outcomes"] == {"rendered": 2, "failed": 1}
    (job,) = report["jobs"]
    measured = json.loads((output / "reports/job-00000.json").read_text())["speedup"]["measured"]
    assert job["measured_pab_factor"] == measured["pab_factor"]
    assert report["speedup"]["measured"]["clips"] == 1
    assert report["speedup"]["measured"]["denoise_s"] == measured["denoise_s"]
    assert report["speedup"]["derived"]["clips"] == 2

    (baseline,) = json.loads((output / "reports/job-00000.json").read_text())["baselines"]
    assert report["quality"]["clips"] == 1
    assert report["quality"]["psnr_db"]["worst"] == baseline["psnr_db"]
    assert document["quality"] == report["quality"]
    assert (document["speedup"], document["alarms"]) == (report["speedup"], report["alarms"])
    assert report["alarms"]["looked_at"] == 2
    assert [(row["psnr_db"], row["vmaf"]) for row in index] == [
        (baseline["psnr_db"], baseline["vmaf"]) if row["clip_id"] == baseline["clip_id"] else (None, None)
        for row in index
    ]
    assert [row["alarms"] for row in index] == [found["a"]["alarms"], None, found["c"]["alarms"]]
    assert [row["warnings"] for row in index] == [found["a"]["warnings"], None, found["c"]["warnings"]]
    assert sum(each["clips"] for each in report["clip_warnings"]) == sum(len(found[name]["warnings"]) for name in "ac")
    assert document["clip_warnings"] == report["clip_warnings"]

    _every_link_leads_to_a_file(output, found)
    assert_gallery_shows(output, found)

    code, status = command.json("status", output)
    assert (code, status["rendered"], status["failed"], status["remaining"]) == (3, 2, 1, 0)
    assert status["failures"] == document["failures"]
    assert (status["quality"], status["alarms"]) == (report["quality"], report["alarms"])
    assert status["speedup"]["measured"] == report["speedup"]["measured"]
    shown = command.run("status", output).stdout
    worst = f"worst PSNR {baseline['psnr_db']:.1f} dB"
    assert f"quality    {worst} of 1 clip rendered with and without reuse (clip {baseline['clip_id']})" in shown
    assert {"alarms", "speedup"} <= {line.partition(" ")[0] for line in shown.splitlines()}
    assert command.run("watch", output).returncode == 3

    assert_logs_tell_of_one_clip(command, output)


def test_submitting_again_writes_a_report_that_is_missing_or_older_than_the_clips(
    command: Command, submitted_twice: SubmittedTwice, tmp_path: Path
) -> None:
    output = shutil.copytree(submitted_twice.output, tmp_path / "out")
    report = output / "reports/run.json"

    def submitted() -> bool:
        """Whether a submit with nothing to render said that it wrote the report, which is there in any case."""
        ran = command.run(*command.submit_words(submitted_twice.manifest, output))
        assert (ran.returncode, f"report     {output}/reports/run.html" in ran.stdout) == (0, True), ran.stderr
        assert json.loads(report.read_text())["outcomes"] == {"rendered": 3}
        assert (output / "reports/index.parquet").is_file()
        return "the run's report is missing, or older than its clips: written anew" in ran.stderr

    assert not submitted()
    shutil.rmtree(output / "reports")
    assert submitted()
    for lost in ("index.parquet", "run.html", "run.json"):  # as a full disk leaves it
        (output / "reports" / lost).unlink()
        assert submitted(), lost
    whole = json.loads(report.read_text())
    for old in (whole | {"outcomes": {"rendered": 2, "left": 1}}, {}, {"outcomes": 3}):
        report.write_text(json.dumps(old))
        assert submitted(), old
    # The disk was full again after a job had rendered clips once more.
    shutil.copy(submitted_twice.output / "reports/job-00000.json", output / "reports")
    assert submitted()
    assert not submitted()
    report.write_text("{")
    assert submitted()
    assert not submitted()


def test_the_folder_that_is_told_is_where_videos_are(
    command: Command, manifest: Manifest, submitted_twice: SubmittedTwice, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    code, document = command.submit(manifest(1), output, "--no-plain-videos")
    assert (code, document["videos"]) == (0, f"{output}/renders")
    assert command.json("status", output)[1]["videos"] == f"{output}/renders"
    assert (output / "renders").is_dir()
    assert not (output / "videos").exists()
    plain = submitted_twice.output
    assert command.json("status", plain)[1]["videos"] == f"{plain}/videos"


def assert_logs_tell_of_one_clip(command: Command, output: Path) -> None:
    code, logs = command.json("logs", output, "--clip", "b")
    assert code == 0
    assert any("event=clip_failed" in line["line"] for line in logs["lines"])
    assert not any("clip=a " in line["line"] for line in logs["lines"])


def _every_link_leads_to_a_file(output: Path, found: dict[str, Any]) -> None:
    links = Links()
    links.feed((output / "reports/run.html").read_text())
    alarmed = {f"../{found[name]['video']['path']}" for name in ("a", "c") if found[name]["alarms"]}
    assert set(links.found) == {"gallery/gallery.js", "job-00000.html", *alarmed}
    assert all((output / "reports" / link).is_file() for link in links.found)


def assert_gallery_shows(output: Path, found: dict[str, dict[str, Any]]) -> None:
    """The gallery's only file tells of all clips; every path in it is there, and one clip has its video without reuse."""
    text = (output / "reports/gallery/00000.js").read_text()
    values = json.loads(text.removeprefix("pabClips(0, ").removesuffix(");\n"))
    rows = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in values}
    assert list(rows) == ["a", "b", "c"]
    for name in ("a", "c"):
        assert rows[name]["video"] == found[name]["video"]["path"]
        assert rows[name]["poster"] == found[name]["video"]["poster"]
        assert (output / rows[name]["poster"]).read_bytes()[:2] == b"\xff\xd8", "a JPEG file"
    assert "it does not decode" in rows["b"]["error"]
    assert json.loads((output / rows["b"]["failure"]).read_text())["clip_id"] == "b"
    paths = ("video", "poster", "without_reuse", "record", "failure", "log", "job")
    assert all((output / row[path]).is_file() for row in rows.values() for path in paths if row[path])
    assert all(row["log"] for row in rows.values())
    compared = [row for row in rows.values() if row["without_reuse"]]
    assert [row["psnr_db"] is not None or row["identical"] for row in compared] == [True]
    own = found[compared[0]["clip_id"]]["clip"]
    assert num_frames(output / compared[0]["without_reuse"]) == own["num_frames"]


def test_a_folder_without_a_run_is_told(command: Command, tmp_path: Path) -> None:
    for words in (["status"], ["watch"], ["report"], ["retry"], ["cancel"], ["logs", "--clip", "a"]):
        ran = command.run(words[0], tmp_path, *words[1:])
        assert ran.returncode == 2
        assert "holds no run.json, so no run" in ran.stderr
