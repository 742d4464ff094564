"""Public prompt sets come in many forms: each becomes a manifest by one command. The files here are small, made up."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from manifests.build import build
from manifests.errors import ManifestError
from manifests.sources.options import SourceOptions
from tests.manifests.test_build import built, refused
from tests.manifests.test_sources import TWO

TABLE = "prompt,seed\na kite,4\na lamp,5\n"
ROWS = [{"prompt": "a kite", "seed": 4}, {"prompt": "a lamp", "seed": 5}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"x1": {"prompt": "a kite"}, "x2": {"prompt": "a lamp"}}),
        ("a.json", {"sky": ["a kite"], "house": ["a lamp"]}),
        ("a.json", {"x1": "a kite", "x2": "a lamp"}),
        ("a.json", {"prompt": TWO, "seed": [1, 2]}),
        ("a.json", {"prompt": {"0": "a kite", "1": "a lamp"}, "seed": {"0": 1, "1": 2}}),
        ("a.json", {"columns": ["seed", "prompt"], "index": [0, 1], "data": [[1, "a kite"], [2, "a lamp"]]}),
        ("a.json", {"info": {"v": 2}, "prompts": TWO}),
        ("a.json", {"info": {"v": 2}, "data": {"set": [{"prompt": "a kite"}, {"prompt": "a lamp"}]}}),
        ("a", [{"prompt": "a kite"}, {"prompt": "a lamp"}]),
        ("a.jsonl", [{"prompt": "a kite"}, {"prompt": "a lamp"}]),
        ("a.txt", [{"prompt": "a kite"}, {"prompt": "a lamp"}]),
        ("a.prompts", "{'prompt': 'a kite'}\n{'prompt': 'a lamp'}\n".replace("'", '"')),
        ("a.txt", "{'prompt': 'a kite'}\n{'prompt': 'a lamp'}\n".replace("'", '"')),
        ("a.csv", "{'prompt': 'a kite'}\n{'prompt': 'a lamp'}\n".replace("'", '"')),
        ("a.txt", "id;prompt\n1;a kite\n2;a lamp\n"),
        ("a.tab", "prompt\tseed\na kite\t\na lamp\t\n"),
        ("prompts", "a kite\r\n\r\na lamp\r\n"),
        ("a.csv", "\ufeffprompt\r\na kite\r\na lamp\r\n"),
        ("a.csv", "Unnamed: 0,prompt\n0,a kite\n1,a lamp\n"),
    ],
)
def test_every_form_is_built_without_a_flag(tmp_path: Path, name: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content, indent=1 if name == "a.jsonl" else None)
    table = built(tmp_path, name, text)
    assert table["prompt"].to_pylist() == TWO
    assert "" not in table.column_names


def test_names_of_a_document_are_kept_as_a_column(tmp_path: Path) -> None:
    table = built(tmp_path, "a.json", json.dumps({"sky": ["a kite", "a bird"], "house": ["a lamp"]}))
    assert table["key"].to_pylist() == ["sky", "sky", "house"]
    (tmp_path / "built.parquet").unlink()
    document = {"sky": [{"prompt": "a kite"}], "house": [{"prompt": "a lamp"}]}
    assert built(tmp_path, "a.json", json.dumps(document), records=".").to_pylist() == [
        {"key": "sky", "prompt": "a kite"}, {"key": "house", "prompt": "a lamp"},
    ]  # fmt: skip


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_packed_files_are_known_by_their_content(tmp_path: Path, pack: Any) -> None:
    for name in ("a.csv.gz", "a.csv"):
        assert built(tmp_path, name, pack(TABLE.encode())).to_pylist() == ROWS
        (tmp_path / "built.parquet").unlink()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_text_that_says_its_encoding_is_read_in_it(tmp_path: Path, encoding: str) -> None:
    assert built(tmp_path, "a.csv", "prompt\na caf\u00e9\n".encode(encoding))["prompt"].to_pylist() == ["a caf\u00e9"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "windows-1252", "latin-1"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a caf\u00e9\n"), ("a.csv", "prompt\na caf\u00e9\n"), ("a.json", '["a caf\u00e9"]'),
        ("a.jsonl", '{"prompt": "a caf\u00e9"}'),
    ],
)  # fmt: skip
def test_other_encodings_are_read_if_they_are_named(tmp_path: Path, encoding: str, name: str, text: str) -> None:
    assert built(tmp_path, name, text.encode(encoding), encoding=encoding)["prompt"].to_pylist() == ["a caf\u00e9"]


def test_a_wrong_encoding_is_told(tmp_path: Path) -> None:
    assert "it is not ascii (" in refused(tmp_path, "a.txt", b"a caf\xe9\n", encoding="ascii")


@pytest.mark.parametrize("encoding", ["klingon", "zlib", "rot13", "hex", "undefined", "", "utf-8\0"])
def test_what_is_no_encoding_of_text_is_refused_by_name(encoding: str) -> None:
    with pytest.raises(ValueError, match=r"encoding .* is not known, allowed: utf-8, utf-16, windows-1252") as refusal:
        SourceOptions(encoding=encoding)
    assert repr(encoding) in str(refusal.value)


def test_parquet_of_others_is_built_with_what_a_manifest_can_keep(tmp_path: Path) -> None:
    table = pa.table(
        {
            "caption": ["a kite", "a lamp"],
            "guidance_scale": pa.array([Decimal("7.5"), None], pa.decimal128(4, 1)),
            "seed": pa.array([4.0, None]),
            "clip_id": pa.array([7, 8]),
            "when": pa.array([datetime(2026, 1, 2, tzinfo=UTC), None]),
            "tags": [["sky"], []],
            "picture": pa.array([{"bytes": b"x", "path": "a.png"}, None]),
            "__index_level_0__": [3, 9],
        }
    )
    source = tmp_path / "a.data"
    pq.write_table(table, source)
    made = build(str(source), tmp_path / "b.parquet", options=SourceOptions(columns={"prompt": "caption"}))
    assert pq.read_table(tmp_path / "b.parquet").to_pylist() == [
        {"prompt": "a kite", "guidance_scale": 7.5, "seed": 4, "clip_id": "7", "when": "2026-01-02T00:00:00+00:00",
         "tags": '["sky"]'},
        {"prompt": "a lamp", "guidance_scale": None, "seed": None, "clip_id": "8", "when": None, "tags": "[]"},
    ]  # fmt: skip
    assert made.warnings == (
        "the column without a name is left out",
        "column 'picture' holds bytes, which a manifest does not keep; it is left out",
    )


def test_folders_patterns_and_partitions_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for part, prompt in (("split=test/lang=en", "a kite"), ("split=train/lang=__HIVE_DEFAULT_PARTITION__", "a lamp")):
        (tmp_path / "set" / part).mkdir(parents=True)
        pq.write_table(pa.table({"prompt": [prompt]}), tmp_path / "set" / part / "0.parquet")
    (tmp_path / "set/_SUCCESS").write_text("")
    (tmp_path / "set/.hidden.txt").write_text("no prompt\n")
    (tmp_path / "set/README.md").write_text("no prompt\n")
    (tmp_path / "set/_notes").mkdir()
    (tmp_path / "set/_notes/a.txt").write_text("no prompt\n")
    for source in ("set", "set/*/*/*.parquet"):
        made = build(str(tmp_path / source), tmp_path / "b.parquet", overwrite=True)
        assert made.num_files == 2
        assert pq.read_table(tmp_path / "b.parquet").to_pylist() == [
            {"prompt": "a kite", "split": "test", "lang": "en"}, {"prompt": "a lamp", "split": "train", "lang": None},
        ]  # fmt: skip


def test_several_sources_are_one_manifest_and_problems_name_their_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a kite\n")
    (tmp_path / "b.csv").write_text("prompt,seed\na lamp,x\n")
    (tmp_path / "c[1].txt").write_text("a boat\n")
    sources = [str(tmp_path / name) for name in ("a.txt", "c[1].txt")]
    build(sources, tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "b.parquet")["prompt"].to_pylist() == ["a kite", "a boat"]
    with pytest.raises(ManifestError, match=r"b\.csv: line 2: seed='x', an integer within int64 is needed"):
        build([*sources, str(tmp_path / "b.csv")], tmp_path / "c.parquet", errors_path=tmp_path / "errors")
    assert json.loads((tmp_path / "errors").read_text())["file"].endswith("b.csv")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("none/*.csv", "no file has such a name; check the pattern"),
        ("empty", "the folder has no file that ends in .csv"),
    ],
)
def test_sources_that_mean_no_file_are_refused(tmp_path: Path, source: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError) as caught:
        build(str(tmp_path / source), tmp_path / "b.parquet")
    assert told in str(caught.value)


def test_standard_input_is_a_source_of_any_form(tmp_path: Path) -> None:
    for data in (b"a kite\na lamp\n", TABLE.encode(), gzip.compress(b'{"prompt": "a kite"}\n{"prompt": "a lamp"}\n')):
        build("-", tmp_path / "b.parquet", stdin=io.BytesIO(data), overwrite=True)
        assert pq.read_table(tmp_path / "b.parquet")["prompt"].to_pylist() == TWO
    with pytest.raises(ManifestError, match="standard input: there is none here"):
        build("-", tmp_path / "c.parquet")


def test_a_manifest_in_a_source_folder_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a kite\n")
    build(str(tmp_path), tmp_path / "b.parquet")
    with pytest.raises(ManifestError, match=r"it is the source itself \(b\.parquet\)"):
        build(str(tmp_path), tmp_path / "b.parquet", overwrite=True)


@pytest.mark.parametrize(
    ("name", "content", "options", "prompts"),
    [
        ("a.jsonl", '{"caption": {"en": "a kite", "zh": "x"}}\n', {"prompt": "caption.en"}, ["a kite"]),
        ("a.json", '[{"captions": [{"text": "a kite"}, {"text": "b"}]}]', {"prompt": "captions.text"}, ["a kite"]),
        ("a.csv", "prompt,prompt_en\nx,a kite\n", {"prompt": "prompt_en"}, ["a kite"]),
    ],
)
def test_columns_are_chosen_also_below_others_and_beside_a_prompt(
    tmp_path: Path, name: str, content: str, options: dict[str, str], prompts: list[str]
) -> None:
    assert built(tmp_path, name, content, columns=options)["prompt"].to_pylist() == prompts


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"prompt_id": ["p-1", "p-2"], "prompt_text": ["a kite over a field", "a lamp on a desk"]}, "prompt_text"),
        ({"negative_prompt": ["blurry and dark"], "caption": ["a kite over a field"]}, "caption"),
        ({"file": ["videos/a b.mp4"], "words": ["a kite over a field"]}, "words"),
        ({"category": ["out door"] * 2, "zh": ["\u4e00\u53ea\u6a58\u732b\u5728\u7761\u89c9", "\u96e8\u540e"]}, "zh"),
    ],
)  # fmt: skip
def test_the_column_that_looks_like_prompts_is_named(tmp_path: Path, columns: dict[str, list[str]], told: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(
        ManifestError, match=f"say which column it is: --prompt-column {told} .columns found: "
    ) as caught:
        build(str(tmp_path / "a.parquet"), tmp_path / "b.parquet")
    assert all(repr(name) in str(caught.value) for name in columns)
    pa.csv.write_csv(pa.table(columns), tmp_path / "a.csv")
    with pytest.raises(ManifestError, match=f"--prompt-column NAME; '{told}' looks like it"):
        build(str(tmp_path / "a.csv"), tmp_path / "b.parquet")


def test_a_long_list_is_read_piece_by_piece(tmp_path: Path) -> None:
    rows = [{"prompt": f"a kite {i} " + "x" * 3000, "seed": i} for i in range(1500)]
    for text in (json.dumps(rows), json.dumps(rows, indent=2)):
        table = built(tmp_path, "a.json", text)
        assert (table.num_rows, table["seed"].to_pylist()[-1]) == (1500, 1499)
        (tmp_path / "built.parquet").unlink()
    assert "this is not JSON" in refused(tmp_path, "a.json", json.dumps(rows)[:-5])
    assert "a comma is needed between rows" in refused(tmp_path, "a.json", json.dumps(rows).replace("}, {", "} {", 1))
