"""Column lora: one text however it is written, instead of the run's LoRAs, refused by row, and shards of one set each."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import accept, validate
from manifests.build import build
from manifests.errors import ManifestError
from manifests.read import read_clips
from manifests.rules import FamilyRules, RowLoras
from manifests.schema import VERSION_KEY
from manifests.shards import plan_shards
from tests.manifests.conftest import family

Write = Callable[..., str]


def wan(asked: list[tuple[str, ...]] | None = None) -> FamilyRules:
    """A family whose run has the LoRA `run`: a row's own stand in the identity in its place."""

    def loras(texts: tuple[str, ...]) -> RowLoras:
        if asked is not None:
            asked.append(texts)
        if "bad" in texts:
            raise ValueError("lora 'bad' does not exist\nsecond line")
        told = " ".join(text.upper() for text in texts)
        return RowLoras(text=";".join(texts) or "none", digests=told, identity=f"weights w loras {told}")

    return replace(family(), identity=lambda: "weights w loras RUN", loras=loras)


def accepted(url: str, rules: FamilyRules) -> bytes:
    sink = io.BytesIO()
    accept(url, {"wan": rules, "other": family("other")}, default_model="wan", sink=sink)
    return sink.getvalue()


def clips_of(url: str, rules: FamilyRules) -> list[Any]:
    return read_clips(io.BytesIO(accepted(url, rules)))


@pytest.mark.parametrize(
    "column",
    [
        ["a:0.5; b ;", None, " ", "none", "a:0.5;b"],
        pa.array(["a:0.5; b ;", None, " ", "none", "a:0.5;b"]).dictionary_encode(),
        pa.array([["a:0.5", "b"], None, [], ["none"], ["a:0.5;b", ""]], pa.list_(pa.string())),
    ],
    ids=["texts", "dictionary", "lists"],
)
def test_texts_and_lists_mean_the_same_and_an_empty_row_has_those_of_the_run(manifest: Write, column: object) -> None:
    asked: list[tuple[str, ...]] = []
    clips = clips_of(manifest({"prompt": list("ppppq"), "seed": [1] * 5, "lora": column}), wan(asked))
    assert [(clip.lora, clip.lora_digests) for clip in clips] == [
        ("a:0.5;b", "A:0.5 B"), (None, None), (None, None), ("none", ""), ("a:0.5;b", "A:0.5 B"),
    ]  # fmt: skip
    assert asked == [("a:0.5", "b"), ()], "each choice once"
    digests = [clip.digest for clip in clips]
    assert digests[1] == digests[2]
    assert len(set(digests)) == 4
    ids = [clip.clip_id for clip in clips]
    assert ids[2] == f"{ids[1]}-1"
    assert len(set(ids)) == 5


def test_a_clip_has_the_same_digest_whether_its_loras_are_the_rows_or_the_runs(manifest: Write) -> None:
    rows = {"clip_id": ["c"], "prompt": ["p"]}
    (plain,) = clips_of(manifest(rows), wan())
    (named,) = clips_of(manifest(rows | {"lora": ["run"]}), wan())
    assert (plain.digest, plain.lora, named.lora) == (named.digest, None, "run")


def test_the_accepted_manifest_names_a_version_that_earlier_readers_refuse(manifest: Write) -> None:
    for column, version in (({}, b"3"), ({"lora": ["a"]}, b"5"), ({"lora": [None], "sampling": [None]}, b"5")):
        schema = pq.read_schema(io.BytesIO(accepted(manifest({"prompt": ["p"], **column}), wan())))
        assert schema.metadata[VERSION_KEY] == version
        assert ("lora" in schema.names) == bool(column)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"lora": ["bad"]}, "row 0: lora='bad', lora 'bad' does not exist"),
        ({"lora": ["a"], "model": ["other"]}, "row 0: lora='a', other takes no LoRA; leave it out"),
        ({"lora": ["x" * 5000]}, "4096 bytes of LoRAs are allowed"),
        ({"lora": pa.array([["a", None]], pa.list_(pa.string()))}, "lora=a list with a null, a list of strings is needed"),
        ({"lora": [1]}, "lists of strings are needed (or strings with ; between the parts)"),
    ],
)  # fmt: skip
def test_what_cannot_be_added_is_refused_by_row(
    manifest: Write, tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    rules = {"wan": wan(), "other": family("other")}
    with pytest.raises(ManifestError) as caught:
        validate(manifest({"prompt": ["p"], **columns}), rules, default_model="wan", errors_path=tmp_path / "errors")
    assert message in str(caught.value)
    assert "second line" not in str(caught.value)


def test_shards_are_cut_by_loras(manifest: Write) -> None:
    names = ["a", None, "b", "a", "none", None, "a"]
    url = manifest({"clip_id": [f"c{i}" for i in range(7)], "prompt": list("pqrstuv"), "lora": names})
    table = pq.read_table(io.BytesIO(accepted(url, wan())))
    plan = plan_shards(table.to_batches(), [], cost=lambda _group: 1.0, job_minutes=60, load_s={"wan": 1.0})
    found = {shard.group.lora: sorted(plan.rows(shard.index).tolist()) for shard in plan.shards}
    assert found == {"": [1, 5], "a": [0, 3, 6], "b": [2], "none": [4]}


def test_a_table_of_text_has_them_too(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,lora\np,a:0.5;b\nq,\n")
    build(str(tmp_path / "rows.csv"), str(tmp_path / "rows.parquet"), errors_path=tmp_path / "errors")
    assert [clip.lora for clip in clips_of(str(tmp_path / "rows.parquet"), wan())] == ["a:0.5;b", None]
