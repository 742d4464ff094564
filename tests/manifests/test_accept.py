from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import AcceptedManifest, accept, validate
from manifests.errors import ManifestError
from manifests.read import open_manifest, read_clips
from manifests.rules import FamilyRules
from manifests.schema import VERSION_KEY
from tests.manifests.conftest import family

Write = Callable[..., str]
Rules = dict[str, FamilyRules]


def accepted_rows(url: str, rules: Rules) -> list[dict[str, Any]]:
    sink = io.BytesIO()
    accept(url, rules, default_model="wan", sink=sink)
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(sink.getvalue())).to_pylist()
    return rows


def refused(url: str, rules: Rules, tmp_path: Path) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        validate(url, rules, default_model="wan", errors_path=tmp_path / "errors.jsonl")
    return caught.value


def test_absent_and_null_values_get_the_defaults_of_the_family(manifest: Write, rules: Rules) -> None:
    rows = accepted_rows(manifest({"prompt": ["a cat", "a dog"], "height": [None, 256]}), rules)
    assert [row["height"] for row in rows] == [480, 256]
    assert [row["width"] for row in rows] == [832, 832]
    assert {row["broadcast"] for row in rows} == {"pab"}
    assert {row["model"] for row in rows} == {"wan"}
    assert rows[0]["guidance_scale"] == 5.0
    assert rows[0]["negative_prompt"] is None


def test_each_family_has_its_own_defaults_and_limits(manifest: Write, tmp_path: Path) -> None:
    rules = {"wan": family(), "small": family("small", height=64, width=64)}
    url = manifest({"prompt": ["a", "b"], "model": ["small", None]})
    assert [row["height"] for row in accepted_rows(url, rules)] == [64, 480]


def test_only_families_that_rows_name_are_asked_for_their_identity_and_once(manifest: Write, tmp_path: Path) -> None:
    asked = []

    def identity(name: str) -> str:
        asked.append(name)
        if name == "gone":
            raise OSError("its hub is away\ncall again")
        return f"weights of {name}"

    rules = {
        name: dataclasses.replace(family(name), identity=functools.partial(identity, name))
        for name in ("gone", "small", "unnamed", "wan")
    }
    url = manifest({"prompt": ["a"] * 40, "model": ["small", None] * 20}, row_group_size=10)
    accepted_rows(url, rules)
    assert sorted(asked) == ["small", "wan"]
    error = refused(manifest({"prompt": ["a", "b", "c"], "model": ["wan", "gone", "gone"]}), rules, tmp_path)
    assert [str(problem) for problem in error.problems] == [
        f"row {row}: model='gone', it cannot be used: its hub is away; fix the manifest" for row in (1, 2)
    ]
    assert asked.count("gone") == 1


def test_extra_columns_are_kept_with_their_types(manifest: Write, rules: Rules) -> None:
    rows = accepted_rows(manifest({"prompt": ["a"], "tags": [["x", "y"]], "source": [7]}), rules)
    assert rows[0]["tags"] == ["x", "y"]
    assert rows[0]["source"] == 7


def test_repeated_content_becomes_different_takes(manifest: Write, rules: Rules) -> None:
    rows = accepted_rows(manifest({"prompt": ["a", "b", "a", "a"]}), rules)
    ids = [row["clip_id"] for row in rows]
    assert ids[2:] == [f"{ids[0]}-1", f"{ids[0]}-2"]
    assert len({row["seed"] for row in rows}) == 4
    assert all(0 <= row["seed"] < 2**63 for row in rows)


def test_a_default_clip_id_survives_other_weights_and_its_digest_does_not(manifest: Write) -> None:
    url = manifest({"prompt": ["a"]})
    [one] = accepted_rows(url, {"wan": family()})
    [other] = accepted_rows(url, {"wan": family(identity="weights-2")})
    assert one["clip_id"] == other["clip_id"]
    assert one["digest"] != other["digest"]


def test_ids_and_digests_do_not_depend_on_the_layout_of_the_file(manifest: Write, rules: Rules) -> None:
    prompts = [f"prompt {i % 700}" for i in range(1000)]
    plain = accepted_rows(manifest({"prompt": prompts, "num_steps": [30] * 1000}), rules)
    other = pa.table(
        {
            "num_steps": pa.array([30.0] * 1000),
            "prompt": pa.array(prompts, pa.large_string()).dictionary_encode(),
        }
    )
    assert accepted_rows(manifest(other, row_group_size=37), rules) == plain


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.uint64(), pa.float32(), pa.float64()])
def test_whole_numbers_of_any_type_are_accepted(manifest: Write, rules: Rules, kind: pa.DataType) -> None:
    url = manifest({"prompt": ["a"], "num_frames": pa.array([81], kind)})
    assert accepted_rows(url, rules)[0]["num_frames"] == 81


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_strings_of_any_encoding_are_accepted(manifest: Write, rules: Rules, kind: pa.DataType) -> None:
    url = manifest({"prompt": pa.array(["ein Mädchen, 猫 🐈"]).cast(kind), "clip_id": pa.array(["x"]).cast(kind)})
    [row] = accepted_rows(url, rules)
    assert (row["prompt"], row["clip_id"]) == ("ein Mädchen, 猫 🐈", "x")


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
        ("broadcast", "pub", r"row 1: broadcast='pub', wan has none, pab"),
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


def test_one_frame_is_allowed_where_a_family_makes_images(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    images = {"wan": dataclasses.replace(family(), images=True)}
    assert accepted_rows(manifest({"prompt": ["a"], "num_frames": [1]}), images)[0]["num_frames"] == 1
    with pytest.raises(ManifestError, match=r"num_frames=80, wan needs 4n\+1 \(77, 81, 85\) or 1 for an image"):
        raise refused(manifest({"prompt": ["a"], "num_frames": [80]}), images, tmp_path)
    with pytest.raises(ManifestError, match=r"num_frames=1, wan needs"):
        raise refused(manifest({"prompt": ["a"], "num_frames": [1]}), rules, tmp_path)
    with pytest.raises(ManifestError, match=r"num_steps=0, wan needs 1 to 100; fix"):
        raise refused(manifest({"prompt": ["a"], "num_steps": [0]}), images, tmp_path)


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


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt": ["a"]}, r"prompt, the column is required and missing; rename 'promt' to 'prompt'"),
        ({"text": ["a"]}, r"prompt, the column is required and missing; add it"),
        ({"prompt": [1]}, r"prompt=<int64>, strings are needed; cast the column"),
        ({"prompt": ["a"], "seed": ["1"]}, r"seed=<string>, integers are needed"),
        ({"prompt": ["a"], "fps": [True]}, r"fps=<bool>, integers are needed"),
        ({"prompt": ["a"], "guidance_scale": ["7"]}, r"guidance_scale=<string>, numbers are needed"),
        ({"prompt": pa.array([], pa.string())}, r"the manifest has no rows; add at least one prompt"),
    ],
)
def test_a_bad_file_is_refused_before_its_rows(
    manifest: Write, rules: Rules, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        raise refused(manifest(columns), rules, tmp_path)


def test_a_column_twice_is_refused(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    with pytest.raises(ManifestError, match="prompt, the column is there more than once; drop all but one"):
        raise refused(manifest(table), rules, tmp_path)


def test_another_version_is_refused(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a"]}).replace_schema_metadata({VERSION_KEY: b"6"})
    with pytest.raises(ManifestError, match="manifest version=6, this program reads versions 1 to 5"):
        raise refused(manifest(table), rules, tmp_path)


def test_an_accepted_manifest_is_accepted_again_with_the_same_digest(
    manifest: Write, rules: Rules, tmp_path: Path
) -> None:
    url = manifest({"prompt": ["a", "b", "a"], "note": [1, 2, 3]})
    first = accept(url, rules, default_model="wan", sink=tmp_path / "one.parquet")
    again = accept(str(tmp_path / "one.parquet"), rules, default_model="wan", sink=tmp_path / "two.parquet")
    assert again.digest == first.digest
    assert pq.read_table(tmp_path / "one.parquet").equals(pq.read_table(tmp_path / "two.parquet"))
    assert pq.read_schema(tmp_path / "one.parquet").metadata[VERSION_KEY] == b"3"
    assert again.warnings == ("column 'digest' is computed anew; the values of the manifest are not kept",)


def test_the_manifest_digest_knows_ids_contents_and_order(manifest: Write, rules: Rules) -> None:
    def digest(*rows: tuple[str, str]) -> str:
        ids, prompts = zip(*rows, strict=True)
        url = manifest({"prompt": list(prompts), "clip_id": list(ids), "seed": [1] * len(rows)})
        return validate(url, rules, default_model="wan").digest

    same = digest(("a", "x"), ("b", "y"))
    assert digest(("a", "x"), ("b", "y")) == same
    others = [digest(("b", "y"), ("a", "x")), digest(("a", "x"), ("c", "y")), digest(("a", "x"), ("b", "z"))]
    assert len({same, *others}) == 4


def test_a_misspelled_column_is_kept_with_a_warning(manifest: Write, rules: Rules) -> None:
    result = validate(manifest({"prompt": ["a"], "num_frame": [81], "author": ["x"]}), rules, default_model="wan")
    assert result.warnings == ("column 'num_frame' is kept as an extra column; if 'num_frames' is meant, rename it",)


def test_a_refused_manifest_leaves_no_file(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    sink = tmp_path / "out.parquet"
    with pytest.raises(ManifestError):
        accept(manifest({"prompt": [""]}), rules, default_model="wan", sink=sink, errors_path=tmp_path / "e")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.parquet", "e"]


def test_validate_says_the_same_as_accept(manifest: Write, rules: Rules) -> None:
    url = manifest({"prompt": ["a", "b"]})
    result = validate(url, rules, default_model="wan")
    assert result == accept(url, rules, default_model="wan", sink=io.BytesIO())
    assert result == AcceptedManifest(num_rows=2, digest=result.digest, warnings=())


def test_a_manifest_is_read_from_any_fsspec_url(rules: Rules) -> None:
    with fsspec.open("memory://bucket/clips.parquet", "wb") as file:
        pq.write_table(pa.table({"prompt": ["a", "b"]}), file)
    assert validate("memory://bucket/clips.parquet", rules, default_model="wan").num_rows == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere.parquet", "nowhere.parquet: the file does not exist; check the path"),
        ("memory://none/clips.parquet", "the file does not exist; check the path"),
        ("nofs://bucket/clips.parquet", r"the file cannot be read \(Protocol not known: nofs\)"),
    ],
)
def test_a_file_that_cannot_be_opened_says_why(rules: Rules, tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        raise refused(url, rules, tmp_path)


def test_a_folder_is_no_manifest(rules: Rules, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="a folder is not a manifest; name one file"):
        raise refused(str(tmp_path), rules, tmp_path)


@pytest.mark.parametrize("content", [b"", b"prompt\na cat\n" * 100])
def test_a_file_that_is_not_parquet_says_how_to_build_one(rules: Rules, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clips.csv"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"the file is not Parquet \(.*\); build one from CSV, JSONL or text"):
        raise refused(str(path), rules, tmp_path)


def test_a_damaged_file_is_named(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    path = Path(manifest({"prompt": [f"prompt {i}" for i in range(10_000)]}))
    content = bytearray(path.read_bytes())
    content[4:4000] = bytes(3996)
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"the file is damaged \(.*\); write it again"):
        raise refused(str(path), rules, tmp_path)


def test_broken_utf8_is_a_bad_row(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff\xfe"])
    prompts = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    error = refused(manifest({"prompt": prompts}), rules, tmp_path)
    with pytest.raises(ManifestError, match=r"row 1: prompt=b'\\xff\\xfe', valid UTF-8 is needed"):
        raise error
    assert error.num_problems == 1


def test_batches_are_bounded_whatever_the_row_groups(manifest: Write) -> None:
    url = manifest({"prompt": [f"p{i}" for i in range(5000)]}, row_group_size=1700)
    with open_manifest(url) as file:
        batches = list(file.iter_batches(batch_rows=512))
    assert max(len(batch) for batch in batches) <= 512
    prompts = np.concatenate([batch.column("prompt").to_numpy(zero_copy_only=False) for batch in batches])
    assert prompts.tolist() == [f"p{i}" for i in range(5000)]


def test_read_clips_gives_the_accepted_rows(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    accept(manifest({"prompt": ["a"], "clip_id": ["x"]}), rules, default_model="wan", sink=tmp_path / "s.parquet")
    [clip] = read_clips(str(tmp_path / "s.parquet"))
    assert (clip.clip_id, clip.prompt, clip.num_frames) == ("x", "a", 81)
    assert clip.key == f"x.{clip.digest}"
    with (tmp_path / "s.parquet").open("rb") as file:
        assert read_clips(file) == [clip]


def test_read_clips_refuses_a_manifest_that_was_not_accepted(manifest: Write) -> None:
    with pytest.raises(ManifestError, match="digest, the column of an accepted manifest is missing; submit again"):
        read_clips(manifest({"prompt": ["a"]}))


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ({"num_frames": 80}, r"default num_frames=80: wan needs 4n\+1 \(77, 81, 85\); change the default"),
        ({"broadcast": "pub"}, r"default broadcast='pub': wan has none, pab; choose one of them"),
        ({"guidance_scale": 50}, r"default guidance_scale=50: wan needs 0 to 20"),
    ],
)
def test_a_default_that_is_not_allowed_is_no_fault_of_the_rows(
    manifest: Write, default: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        validate(manifest({"prompt": ["a"]}), {"wan": family(**default)}, default_model="wan")


def test_an_unknown_default_model_is_refused(manifest: Write, rules: Rules) -> None:
    with pytest.raises(ValueError, match="default model 'won' is none of wan; name one of them"):
        validate(manifest({"prompt": ["a"]}), rules, default_model="won")


@pytest.mark.parametrize("column", ["clip_id", "digest"])
@pytest.mark.parametrize("name", ["../../.ssh/x", "a/b", "..", "", "a\\b", "a\x00b"])
def test_a_shard_that_somebody_else_wrote_cannot_name_files_outside_of_the_run(
    manifest: Write, rules: Rules, tmp_path: Path, column: str, name: str
) -> None:
    accept(manifest({"prompt": ["a", "b"]}), rules, default_model="wan", sink=tmp_path / "accepted.parquet")
    table = pq.read_table(tmp_path / "accepted.parquet")
    assert len(read_clips(str(tmp_path / "accepted.parquet"))) == 2
    names = pa.array([table[column][0].as_py(), name])
    table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), names)
    pq.write_table(table, tmp_path / "shard.parquet")
    with pytest.raises(ManifestError, match="no accepted manifest has such a name"):
        read_clips(str(tmp_path / "shard.parquet"))
