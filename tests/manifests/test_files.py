"""What a manifest is read from: any URL, and files that are none, damaged, of another version, or somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import accept, validate
from manifests.errors import ManifestError
from manifests.read import open_manifest, read_clips
from manifests.schema import VERSION_KEY
from tests.manifests.conftest import Rules, refused

Write = Callable[..., str]


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
