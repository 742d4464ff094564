"""Columns of a manifest never replace those of an export, and their values are ones that JSON and CSV can hold."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.pipeline.command import Command
from tests.pipeline.runs_to_export import PROMPT, write_run

OLD = {"file_name": pa.array(["clips/0001.mp4"]), "caption": pa.array(["old"])}


def refuse_constant(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=refuse_constant) for line in file.read_text().splitlines()]


def cells_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(), newline="")))


def test_file_names_and_captions_are_those_of_the_export(command: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", ["a"], OLD)
    renamed = {"file_name": "file_name_in_manifest", "caption": "caption_in_manifest"}
    code, document = command.json("export", run, tmp_path / "hf", "--format", "huggingface")
    assert (code, document["renamed"]) == (0, renamed)
    (line,) = lines_of(tmp_path / "hf/train/metadata.jsonl")
    assert (line["file_name"], line["caption"]) == ("a.mp4", PROMPT)
    assert (line["file_name_in_manifest"], line["caption_in_manifest"]) == ("clips/0001.mp4", "old")
    ran = command.run("export", run, tmp_path / "csv", "--format", "csv")
    told = (
        "columns of the manifest whose names this form uses itself: file_name is file_name_in_manifest, "
        "caption is caption_in_manifest"
    )
    assert told in ran.stderr.splitlines()
    (cells,) = cells_of(tmp_path / "csv/clips.csv")
    assert (cells["file_name"], cells["caption"]) == ("videos/a.mp4", PROMPT)
    assert (cells["file_name_in_manifest"], cells["caption_in_manifest"]) == ("clips/0001.mp4", "old")


def test_both_captions_of_a_web_data_set_are_the_prompt(command: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", ["a"], OLD)
    code, document = command.json("export", run, tmp_path / "set", "--format", "webdataset")
    assert (code, document["renamed"]) == (0, {"caption": "caption_in_manifest"})
    with tarfile.open(tmp_path / "set/clips-000000.tar") as tar:
        text, facts = (tar.extractfile(f"000000000.{suffix}") for suffix in ("txt", "json"))
        assert text is not None
        assert facts is not None
        assert text.read().decode() == PROMPT
        assert json.loads(facts.read()) == {
            "caption": PROMPT, "clip_id": "a", "alarms": [], "file_name": "clips/0001.mp4", "caption_in_manifest": "old",
        }  # fmt: skip


def test_a_column_that_is_named_like_the_new_name_is_kept_too(command: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", ["a"], {**OLD, "caption_in_manifest": pa.array(["older"])})
    assert command.run("export", run, tmp_path / "csv", "--format", "csv").returncode == 0
    (cells,) = cells_of(tmp_path / "csv/clips.csv")
    assert (cells["caption"], cells["caption_in_manifest"]) == (PROMPT, "older")
    assert cells["caption_in_manifest_in_manifest"] == "old"


@pytest.mark.parametrize("name", ["video", "file_names", "first_frame_file_name", "frame_file_names"])
def test_no_column_is_one_that_the_reader_would_open_as_a_video(command: Command, tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "out", ["a"], {name: pa.array(["x.png"])})
    assert command.run("export", run, tmp_path / "hf", "--format", "huggingface").returncode == 0
    (line,) = lines_of(tmp_path / "hf/train/metadata.jsonl")
    assert name not in line
    assert line[f"{name}_in_manifest"] == "x.png"


def test_no_nested_value_is_one_that_the_reader_would_open_as_a_video(command: Command, tmp_path: Path) -> None:
    cut = {"file_name": "x.mp4", "file_name_in_manifest": "y.mp4", "parts": [{"a_file_name": "z.mp4", "prompt": "p"}]}
    run = write_run(tmp_path / "out", ["a"], {"cut": pa.array([cut])})
    code, document = command.json("export", run, tmp_path / "hf", "--format", "huggingface")
    assert (code, sorted(document["renamed"])) == (0, ["a_file_name", "file_name"])
    (line,) = lines_of(tmp_path / "hf/train/metadata.jsonl")
    assert line["cut"] == {
        "file_name_in_manifest_in_manifest": "x.mp4",
        "file_name_in_manifest": "y.mp4",
        "parts": [{"a_file_name_in_manifest": "z.mp4", "prompt": "p"}],
    }
    assert command.json("export", run, tmp_path / "csv", "--format", "csv")[1]["renamed"] == {}
    (cells,) = cells_of(tmp_path / "csv/clips.csv")
    assert json.loads(cells["cut"]) == cut


def odd_columns() -> dict[str, pa.Array]:
    nan, infinity = float("nan"), float("inf")
    return {
        "score": pa.array([nan]),
        "scores": pa.array([[1.5, -infinity]]),
        "raw": pa.array([b"\xff\x00"]),
        "nested": pa.array([{"a": 1, "b": [nan, None], "raw": b"\xff"}]),
        "words": pa.array([["one two", "three"]]),
        "pairs": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        "day": pa.array([date(2026, 1, 2)]),
        "at": pa.array([datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)]),
        "at_ns": pa.array([1_000_000_001], pa.timestamp("ns")),
        "took": pa.array([timedelta(days=1, seconds=1)]),
        "took_ns": pa.array([1_500_000_001], pa.duration("ns")),
        "price": pa.array([Decimal("1.50")]),
        "good": pa.array([True]),
        "none": pa.array([None], pa.int64()),
    }


ODD: dict[str, Any] = {
    "score": None, "scores": [1.5, None], "raw": "/wA=", "nested": {"a": 1, "b": [None, None], "raw": "/w=="},
    "words": ["one two", "three"], "pairs": [["k", 1]], "day": "2026-01-02", "at": "2026-01-02T03:04:05+00:00",
    "at_ns": "1970-01-01T00:00:01.000000001", "took": 86401.0, "took_ns": 1.500000001, "price": "1.50", "good": True,
}  # fmt: skip


def test_every_value_is_valid_json(command: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", ["a"], odd_columns())
    assert command.run("export", run, tmp_path / "hf", "--format", "huggingface").returncode == 0
    (line,) = lines_of(tmp_path / "hf/train/metadata.jsonl")
    assert line == {"file_name": "a.mp4", "caption": PROMPT, "clip_id": "a", "alarms": [], **ODD}
    assert command.run("export", run, tmp_path / "set", "--format", "webdataset").returncode == 0
    with tarfile.open(tmp_path / "set/clips-000000.tar") as tar:
        facts = tar.extractfile("000000000.json")
        assert facts is not None
        told = json.loads(facts.read(), parse_constant=refuse_constant)
    assert told == {"caption": PROMPT, "clip_id": "a", "alarms": [], **ODD}


def test_cells_hold_nested_values_as_json(command: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", ["a"], odd_columns())
    assert command.run("export", run, tmp_path / "csv", "--format", "csv").returncode == 0
    (cells,) = cells_of(tmp_path / "csv/clips.csv")
    assert {name: cells[name] for name in ("score", "none", "alarms", "raw", "day", "took", "price")} == {
        "score": "", "none": "", "alarms": "", "raw": "/wA=", "day": "2026-01-02", "took": "86401.0", "price": "1.50",
    }  # fmt: skip
    for name in ("scores", "nested", "words", "pairs", "good"):
        assert json.loads(cells[name], parse_constant=refuse_constant) == ODD[name], name


def test_a_table_of_no_clips_still_names_its_columns(command: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", [])
    code, document = command.json("export", run, tmp_path / "csv", "--format", "csv")
    assert (code, document["clips"]) == (0, 0)
    assert (tmp_path / "csv/clips.csv").read_text() == "file_name,caption,clip_id,alarms\n"
