"""`runs` lists what lies in a folder, and `--version` says what is installed."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pipeline.command import Command


def test_runs_of_a_folder_are_listed_the_newest_first(command: Command, tmp_path: Path) -> None:
    for name, created, clips in (("old", "2026-01-01T10:00:00+00:00", 1), ("new", "2026-02-01T10:00:00+00:00", 3)):
        (tmp_path / f"{name}/records").mkdir(parents=True)
        run = {"run_id": name, "created": created, "num_clips": clips, "weights": {"wan": {}}}
        (tmp_path / f"{name}/run.json").write_text(json.dumps(run))
        (tmp_path / f"{name}/records/a.0a.json").write_text("{}")
    (tmp_path / "new/reports").mkdir()
    (tmp_path / "new/reports/run.json").write_text('{"outcomes": {"failed": 2}}')
    (tmp_path / "no run").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/run.json").write_text('{"title": "of another program"}')
    code, document = command.json("runs", tmp_path)
    assert code == 0
    assert [(each["name"], each["rendered"], each["failed"]) for each in document["runs"]] == [
        ("new", 1, 2),
        ("old", 1, None),
    ]
    lines = command.run("runs", tmp_path).stdout.splitlines()
    assert lines[0] == f"2 runs in {tmp_path}"
    assert lines[1] == "new  2026-02-01 10:00  wan, 1 of 3 clips, 2 failed"
    assert lines[2] == "old  2026-01-01 10:00  wan, 1 of 1 clip"
    nothing = command.run("runs", tmp_path / "no run")
    assert nothing.returncode == 2
    assert "has no folders, so no runs" in nothing.stderr


def test_the_name_of_a_folder_makes_no_line_of_its_own(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a\nforged  2026-01-01 10:00\x1b[31m"
    folder.mkdir()
    run = {"run_id": "a", "created": "2026-01-01T10:00:00+00:00", "num_clips": 1, "weights": {"wan": {}}}
    (folder / "run.json").write_text(json.dumps(run))
    lines = command.run("runs", tmp_path).stdout.splitlines()
    assert lines[1:] == [r"a\nforged  2026-01-01 10:00\x1b[31m  2026-01-01 10:00  wan, 0 of 1 clip"]
