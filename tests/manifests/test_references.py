"""Rows that name reference images and videos."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import accept, validate
from manifests.build import build
from manifests.errors import ManifestError
from manifests.read import read_clips
from manifests.references import SeenReference, resolved, split_references
from manifests.rules import FamilyRules
from manifests.schema import VERSION_KEY
from tests.manifests.conftest import family
from tests.manifests.test_digest import GOLDEN, PINNED

Write = Callable[..., str]


def check_mask(strategy: str, reference_frames: Sequence[int], num_frames: int, loops: int) -> None:
    if strategy == "9":
        raise ValueError(
            f"it names reference 9, the row has {len(reference_frames)} with {max(reference_frames)} frames"
        )


@pytest.fixture
def rules() -> dict[str, FamilyRules]:
    return {"wan": dataclasses.replace(family(), check_mask=check_mask), "plain": family("plain")}


class Store:
    """References by URL, and how often each was asked for."""

    def __init__(self, **files: str) -> None:
        self.files = files
        self.asked: list[str] = []

    def __call__(self, urls: Sequence[str]) -> Mapping[str, SeenReference | str]:
        self.asked += urls
        return {
            url: SeenReference(sha256=self.files[name], num_frames=1)
            if (name := Path(url).stem) in self.files
            else "it cannot be read (the file does not exist)"
            for url in urls
        }


def accepted(url: str, rules: dict[str, FamilyRules], store: Store) -> pa.Table:
    sink = io.BytesIO()
    accept(url, rules, default_model="wan", sink=sink, read_references=store)
    return pq.read_table(io.BytesIO(sink.getvalue()))


def test_rows_without_references_keep_their_ids_seeds_and_digests(
    manifest: Write, rules: dict[str, FamilyRules]
) -> None:
    columns = GOLDEN | {"references": pa.nulls(3, pa.list_(pa.string()))}
    rows = accepted(manifest(columns), rules, Store()).to_pylist()
    assert [(row["clip_id"], row["seed"], row["digest"]) for row in rows] == PINNED
    columns = {name: [*values, "a shore" if name == "prompt" else None] for name, values in GOLDEN.items()}
    rows = accepted(manifest(columns | {"references": [None, "", " ; ", "a.png"]}), rules, Store(a="aa")).to_pylist()
    assert [(row["clip_id"], row["seed"], row["digest"]) for row in rows[:3]] == PINNED
    assert [row["references"] is None for row in rows] == [True, True, True, False]


def test_the_digest_covers_what_references_hold_and_the_strategy_and_not_how_they_are_named(
    manifest: Write, rules: dict[str, FamilyRules]
) -> None:
    columns = {
        "prompt": ["a"] * 6,
        "seed": [1] * 6,
        "references": [None, "a.png", "other/a.png", "b.png", "a.png;b.png", "a.png"],
        "mask_strategy": [None, None, "0", None, None, "0,0,0,0,1,0.5"],
    }
    table = accepted(manifest(columns), rules, Store(a="aa", b="bb"))
    plain, first, renamed, other, both, edited = table.column("digest").to_pylist()
    assert first == renamed
    assert len({plain, first, other, both, edited}) == 5
    assert len(set(table.column("clip_id").to_pylist())) == 6
    assert table.column("mask_strategy").to_pylist() == [None, "0", "0", "0", "0", "0,0,0,0,1,0.5"]


def test_an_accepted_manifest_names_whole_urls_and_digests_and_reads_back_as_clips(
    manifest: Write, rules: dict[str, FamilyRules], tmp_path: Path
) -> None:
    store = Store(a="aa", b="bb")
    url = manifest({"prompt": ["x", "y"], "references": [["sub/a.png", "s3://bucket/b.mp4"], None], "note": [1, 2]})
    table = accepted(url, rules, store)
    assert table.schema.metadata[VERSION_KEY] == b"3"
    assert table.column_names[-1] == "note"
    sink = io.BytesIO()
    pq.write_table(table, sink)
    first, second = read_clips(io.BytesIO(sink.getvalue()))
    assert first.references == (str(tmp_path / "sub/a.png"), "s3://bucket/b.mp4")
    assert (first.reference_digests, first.mask_strategy) == (("aa", "bb"), "0")
    assert (second.references, second.reference_digests, second.mask_strategy) == ((), (), None)
    again = tmp_path / "again.parquet"
    again.write_bytes(sink.getvalue())
    assert accepted(str(again), rules, store).column("digest").equals(table.column("digest"))
    plain = accepted(manifest({"prompt": ["x"]}), rules, store)
    assert plain.schema.metadata[VERSION_KEY] == b"3"
    assert "references" not in plain.column_names


def test_every_bad_row_is_told_once_with_all_others(
    manifest: Write, rules: dict[str, FamilyRules], tmp_path: Path
) -> None:
    rows = [
        {"prompt": "good", "references": "a.png"},
        {"prompt": "gone", "references": "a.png;gone.png;lost.png"},
        {"prompt": "misfit", "references": "a.png", "mask_strategy": "9"},
        {"prompt": "no taker", "references": "unread.png", "model": "plain"},
        {"prompt": "no reference", "mask_strategy": "0"},
        {"prompt": "", "references": "a.png"},
        {"prompt": "bad size", "references": "a.png", "mask_strategy": "9", "num_frames": 6},
    ]
    store = Store(a="aa")
    url = manifest(pa.Table.from_pylist(rows, schema=pa.schema(
        [(name, pa.string()) for name in ("prompt", "references", "mask_strategy", "model")] + [("num_frames", pa.int64())]
    )))  # fmt: skip
    with pytest.raises(ManifestError) as caught:
        validate(url, rules, default_model="wan", errors_path=tmp_path / "e.jsonl", read_references=store)
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [(line["row"], line["column"]) for line in lines] == [
        (1, "references"), (2, "mask_strategy"), (3, "references"), (4, "mask_strategy"), (5, "prompt"), (6, "num_frames"),
    ]  # fmt: skip
    told = str(caught.value)
    assert f"row 1: references={tmp_path}/gone.png, it cannot be read (the file does not exist); check path" in told
    assert "row 2: mask_strategy='9', it names reference 9, the row has 1 with 1 frames; fix the manifest" in told
    assert "row 3: references='unread.png', plain takes no references (wan do); leave the column empty" in told
    assert "row 4: mask_strategy='0', a mask strategy says which frames references give" in told
    assert not any("unread" in asked for asked in store.asked)


def test_a_column_that_holds_no_references_is_told(manifest: Write, rules: dict[str, FamilyRules]) -> None:
    with pytest.raises(ManifestError, match="references=<int64>, lists of strings are needed"):
        accepted(manifest({"prompt": ["a"], "references": [3]}), rules, Store())
    result = validate(manifest({"prompt": ["a"], "reference": ["x"]}), rules, default_model="wan")
    assert "if 'references' is meant" in result.warnings[0]


def test_csv_and_json_lines_carry_references(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,references,mask_strategy\nx,a.png;b.mp4,"0;0,1,0,-1"\ny,,\n')
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "x", "references": ["a.png", "b.mp4"], "mask_strategy": "0;0,1,0,-1"}\n{"prompt": "y"}\n'
    )
    tables = []
    for name in ("a.csv", "a.jsonl"):
        build(str(tmp_path / name), tmp_path / "built.parquet", overwrite=True)
        tables.append(pq.read_table(tmp_path / "built.parquet"))
    assert tables[0].equals(tables[1])
    assert tables[0].column("references").to_pylist() == [["a.png", "b.mp4"], None]
    assert tables[0].schema.metadata[VERSION_KEY] == b"2"
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x", "references": [1]}\n')
    with pytest.raises(ManifestError, match="a string or a list of strings is needed"):
        build(str(tmp_path / "bad.jsonl"), tmp_path / "bad.parquet", errors_path=tmp_path / "errors")


@pytest.mark.parametrize(
    ("name", "manifest_url", "url"),
    [
        ("a.png", "/data/m.parquet", "/data/a.png"),
        ("/x/a.png", "/data/m.parquet", "/x/a.png"),
        ("pics/a.png", "s3://bucket/runs/m.parquet", "s3://bucket/runs/pics/a.png"),
        ("https://host/a.png?x=1", "s3://bucket/m.parquet", "https://host/a.png?x=1"),
    ],
)
def test_relative_references_lie_beside_the_manifest(name: str, manifest_url: str, url: str) -> None:
    assert resolved(name, manifest_url) == url


def test_blank_parts_of_a_cell_name_nothing() -> None:
    assert split_references(" a.png ;; b.png ") == ("a.png", "b.png")
    assert split_references(["a;b.png", None, ""]) == ("a;b.png",)


def test_a_row_that_names_millions_of_references_is_refused_before_they_are_looked_at(
    manifest: Write, rules: dict[str, FamilyRules], tmp_path: Path
) -> None:
    store = Store(a="aa")
    for column, told in (
        ({"references": [["a.png"] * 65, ["a.png"]]}, "row 0: references, 65 references, at most 64 are read"),
        ({"references": ["a.png;" * 30_000, "a.png"]}, "row 0: references, 180,000 bytes, at most 131,072 are read"),
        ({"references": ["a.png"] * 2, "mask_strategy": ["0;" * 9000, "0"]}, "row 0: mask_strategy, 18,000 bytes"),
    ):
        with pytest.raises(ManifestError) as caught:
            validate(
                manifest({"prompt": ["x", "y"], **column}), rules, default_model="wan", read_references=store,
                errors_path=tmp_path / "errors",
            )  # fmt: skip
        assert told in str(caught.value)
        assert caught.value.num_problems == 1


def test_the_column_image_means_one_reference_that_begins_the_clip(
    manifest: Write, rules: dict[str, FamilyRules], tmp_path: Path
) -> None:
    columns = {"prompt": ["x"] * 3, "seed": [1] * 3, "image": ["sub/a.png", None, " "]}
    table = accepted(manifest(columns), rules, Store(a="aa"))
    columns = {"prompt": ["x"] * 3, "seed": [1] * 3, "references": ["sub/a.png", None, None]}
    assert table.equals(accepted(manifest(columns), rules, Store(a="aa")))
    assert "image" not in table.column_names
    assert table.column("references").to_pylist() == [[str(tmp_path / "sub/a.png")], None, None]
    (tmp_path / "a.csv").write_text("prompt,Image\nx,a.png\ny,\n")
    build(str(tmp_path / "a.csv"), tmp_path / "built.parquet")
    built = pq.read_table(tmp_path / "built.parquet")
    assert built.column("image").to_pylist() == ["a.png", None]
    assert built.schema.metadata[VERSION_KEY] == b"4", "an older program would leave the images out"
    assert accepted(str(tmp_path / "built.parquet"), rules, Store(a="aa")).num_rows == 2


def test_bad_images_are_told_and_so_are_rows_that_need_one(
    manifest: Write, rules: dict[str, FamilyRules], tmp_path: Path
) -> None:
    def one_image(strategy: str, frames: Sequence[int], num_frames: int, loops: int) -> None:
        if len(frames) > 1:
            raise ValueError(f"this model takes one image, not {len(frames)}")

    rules["needs"] = dataclasses.replace(family("needs"), check_mask=one_image, needs_image=True)
    rows = [
        {"model": "needs", "image": "a.png"},
        {"model": "needs"},
        {"model": "needs", "references": "a.png"},
        {"image": "a.png", "references": "a.png"},
        {"image": "a.png", "mask_strategy": "0"},
        {"image": "film.mp4"},
        {"image": "gone.png"},
        {"image": "a.png", "model": "plain"},
        {"model": "needs", "references": "a.png;a.png"},
        {"model": "needs", "num_frames": 6},
        {"image": "x" * 200_000},
    ]
    names = ("prompt", "image", "references", "mask_strategy", "model")
    schema = pa.schema([(name, pa.string()) for name in names] + [("num_frames", pa.int64())])
    url = manifest(pa.Table.from_pylist([{"prompt": "x"} | row for row in rows], schema=schema))
    store = Store(a="aa")

    def read(urls: Sequence[str]) -> Mapping[str, SeenReference | str]:
        film = {url: SeenReference(sha256="ff", num_frames=7) for url in urls if url.endswith("film.mp4")}
        return {**store(urls), **film}

    with pytest.raises(ManifestError):
        validate(url, rules, default_model="wan", errors_path=tmp_path / "e.jsonl", read_references=read)
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    told = [(line["row"], line["column"], line["allowed"]) for line in lines]
    needs = "needs needs an image, the first frame of the clip"
    both = "an image is the first frame, and references or a mask strategy say it too"
    assert told == [
        (1, "image", needs),
        (3, "image", both),
        (4, "image", both),
        (5, "image", "it is a video of 7 frames, and the column image names a picture"),
        (6, "image", "it cannot be read (the file does not exist)"),
        (7, "image", "plain takes no image (needs, wan do)"),
        (8, "references", "this model takes one image, not 2"),
        (9, "num_frames", lines[-2]["allowed"]),
        (10, "image", "200,000 bytes, at most 131,072 are read"),
    ]
    assert lines[0]["action"] == "name its path or URL in the column image, or name another model"
