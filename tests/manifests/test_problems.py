"""What is wrong with rows: named by row and value, all of it in one error and in the file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests.accept import validate
from manifests.errors import ManifestError
from tests.manifests.conftest import Rules, accepted_rows, family, refused

Write = Callable[..., str]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("num_frames", 80, r"row 1: num_frames=80, wan needs 4n\+1 \(77, 81, 85\); fix the manifest"),
        ("num_frames", 500, r"row 1: num_frames=500, wan needs 4n\+1 from 5 to 121 \(113, 117, 121\)"),
        ("height", 33, r"row 1: height=33, wan needs 16n \(32, 48, 64\)"),
        ("width", -(2**62), r"width=-4611686018427387904, wan needs 16n from 32 to 1024 \(32, 48, 64\)"),
        ("fps", 60, r"row 1: fps=60, wan needs 8 to 30"),
        ("num_steps", 0, r"row 1: num_steps=0, wan needs 1 to 100"),
        ("num_steps", 2.5, r"row 1: num_steps=2.5, a whole number within int64 is needed"),
        ("num_steps", float("nan"), r"row 1: num_steps=nan, a whole number"),
        ("seed", 1e19, r"row 1: seed=1e\+19, a whole number within int64 is needed"),
        ("guidance_scale", float("nan"), r"row 1: guidance_scale=nan, a finite number is needed"),
        ("guidance_scale", float("inf"), r"row 1: guidance_scale=inf, a finite number is needed"),
        ("guidance_scale", 21.5, r"row 1: guidance_scale=21.5, wan needs 0 to 20"),
        ("model", "won", r"row 1: model='won', the models are wan"),
        ("broadcast", "pub", r"row 1: broadcast='pub', wan has none, pab, and no --broadcast file has that name"),
        ("clip_id", "a/b", r"row 1: clip_id='a/b', 1 to 128 of the characters"),
        ("clip_id", "x" * 129, r"row 1: clip_id='xxx.*…', 1 to 128 of the characters"),
        ("clip_id", "a\n", r"row 1: clip_id='a\\n', 1 to 128 of the characters"),
        ("clip_id", "", r"row 1: clip_id='', 1 to 128 of the characters"),
        ("clip_id", ".writing-1", r"row 1: clip_id='.writing-1', .* the first no . or -"),
        ("clip_id", "-rf", r"row 1: clip_id='-rf', .* the first no . or -"),
        ("clip_id", "..", r"row 1: clip_id='..', .* the first no . or -"),
        ("clip_id", "a.", r"row 1: clip_id='a.', .* the last no ."),
        ("clip_id", "NUL", r"row 1: clip_id='NUL', Windows keeps this name"),
        ("clip_id", "com1.x", r"row 1: clip_id='com1.x', Windows keeps this name"),
        ("prompt", None, r"row 1: prompt=null, a prompt that is not empty is needed"),
        ("prompt", "", r"row 1: prompt='', a prompt that is not empty is needed"),
        ("prompt", " \t\u3000", r"row 1: prompt=.*, a prompt that is not empty is needed"),
        ("prompt", "é" * 201, r"row 1: prompt='é.*…', 201 characters, at most 200 are allowed \(max_prompt_chars\)"),
        ("negative_prompt", "n" * 201, r"row 1: negative_prompt=.* 201 characters, at most 200 are allowed"),
    ],
)
def test_a_bad_value_is_named_with_its_row_and_what_is_allowed(
    manifest: Write, rules: Rules, tmp_path: Path, column: str, value: Any, message: str
) -> None:
    columns: dict[str, Any] = {"prompt": ["fine", "fine"]} | {column: [None, value]}
    if column == "prompt":
        columns["prompt"] = ["fine", value]
    error = refused(manifest(columns), rules, tmp_path)
    assert error.num_problems == 1
    with pytest.raises(ManifestError, match=message):
        raise error


def test_two_hundred_wide_characters_are_no_oversize_prompt(manifest: Write, rules: Rules) -> None:
    assert accepted_rows(manifest({"prompt": ["é" * 200]}), rules)[0]["prompt"] == "é" * 200


def test_too_many_tokens_name_the_size(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    error = refused(manifest({"prompt": ["a"], "height": [1024], "width": [1024]}), rules, tmp_path)
    assert (
        str(error)
        .splitlines()[0]
        .endswith(
            "row 0: size=1024x1024 with 81 frames, this is 86016 tokens, "
            "wan allows 40000 (max_tokens); fix the manifest"
        )
    )


def test_num_tokens_is_asked_once_per_distinct_size(manifest: Write) -> None:
    asked: list[tuple[int, int, int]] = []

    def count(num_frames: int, height: int, width: int) -> int:
        asked.append((num_frames, height, width))
        return 1

    rules = {"wan": dataclasses.replace(family(), num_tokens=count)}
    url = manifest({"prompt": [f"p{i}" for i in range(200_000)], "height": [64, 128] * 100_000})
    validate(url, rules, default_model="wan")
    assert sorted(asked) == [(81, 64, 832), (81, 128, 832)]


def test_all_problems_are_in_one_error_and_in_the_file(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    columns = {"prompt": ["a", None] * 50, "num_frames": [80] * 100, "clip_id": [None] * 98 + ["same", "same"]}
    error = refused(manifest(columns), rules, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert error.num_problems == len(lines) == 151
    assert len(error.problems) == 20
    assert "151 problems, rows count from 0" in str(error)
    assert "... and 131 more" in str(error)
    assert f"all of them: {tmp_path / 'errors.jsonl'}" in str(error)
    assert lines[0] == {
        "row": 0,
        "column": "num_frames",
        "value": "80",
        "allowed": "wan needs 4n+1 (77, 81, 85)",
        "action": "fix the manifest",
    }
    assert lines[-1]["row"] == 99
    assert (
        lines[-1]["allowed"]
        == "row 98 has the same one, or one that differs by case alone, and clip ids must be unique"
    )


def test_the_errors_file_is_named_after_the_manifest(
    manifest: Write, rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=r"all of them: clips\.parquet\.errors\.jsonl"):
        validate(manifest({"prompt": [""]}), rules, default_model="wan")
    assert (tmp_path / "clips.parquet.errors.jsonl").exists()


def test_an_errors_file_that_cannot_be_written_hides_no_problem(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"prompt='', .*\nthe list of all problems could not be written to"):
        validate(manifest({"prompt": [""]}), rules, default_model="wan", errors_path=tmp_path / "no" / "e.jsonl")
    # A full disk is told only when what is buffered is written.
    with pytest.raises(ManifestError, match=r"prompt='', .*\nthe list of all problems could not .* No space left"):
        validate(manifest({"prompt": [""]}), rules, default_model="wan", errors_path=Path("/dev/full"))


def test_duplicates_are_found_across_row_groups_and_batches(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    num_rows = 300_000
    ids = [f"clip-{i:07}" for i in range(num_rows)]
    ids[299_999] = ids[5]
    ids[200_000] = ids[5]
    url = manifest({"prompt": ["p"] * num_rows, "clip_id": ids}, row_group_size=10_000)
    error = refused(url, rules, tmp_path)
    assert [(p.row, p.value, p.allowed[:5]) for p in error.problems] == [
        (200_000, "'clip-0000005'", "row 5"),
        (299_999, "'clip-0000005'", "row 5"),
    ]


def test_ids_that_differ_by_case_alone_are_duplicates(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    error = refused(manifest({"prompt": ["a", "b", "c"], "clip_id": ["Cat", "dog", "cAT"]}), rules, tmp_path)
    assert [(p.row, p.value) for p in error.problems] == [(2, "'cAT'")]
    with pytest.raises(ManifestError, match="row 0 has the same one, or one that differs by case alone"):
        raise error


def test_a_given_id_that_equals_a_made_one_is_a_duplicate(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    made = accepted_rows(manifest({"prompt": ["a"]}), rules)[0]["clip_id"]
    error = refused(manifest({"prompt": ["a", "b"], "clip_id": [None, made]}), rules, tmp_path)
    with pytest.raises(ManifestError, match=f"row 1: clip_id='{made}', row 0 has the same one"):
        raise error
