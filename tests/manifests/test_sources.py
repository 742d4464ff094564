"""Making a manifest from the files that people have: what is found out, what is asked, and what is never written over."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import validate
from manifests.build import build
from manifests.errors import ManifestError
from manifests.sources.raw_lines import MAX_LINE_BYTES
from manifests.suffixes import split_suffix
from tests.manifests.conftest import family
from tests.manifests.test_build import built, refused

TWO = ["a kite", "a lamp"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "Prompt\na kite\na lamp\n"),
        ("a.csv", " PROMPT ;seed\na kite;\na lamp;\n"),
        ("a.csv", "prompt\tCategory\na kite\tsky\na lamp\thouse\n"),
        ("a.csv", "category|prompt\nsky|a kite\nhouse|a lamp\n"),
        ("a.csv", ",Prompt\n0,a kite\n1,a lamp\n"),
        ("a.tsv", "Prompt\tCategory\na kite\toutdoor\na lamp\tindoor\n"),
        ("a.json", '[{"prompt": "a kite"}, {"prompt": "a lamp"}]'),
        ("a.json", '["a kite", "a lamp"]'),
        ("a.json", '{"info": {"v": 2}, "records": [{"Prompt": "a kite"}, {"Prompt": "a lamp"}]}'),
        ("a.json", '{"data": {"items": [\n{"prompt": "a kite"},\n{"prompt": "a lamp"}]}}'),
        ("a.json", '{"prompt": "a kite", "tags": {"x": [1]}}\n\n{"prompt": "a lamp"}\n'),
        ("a.jsonl", '{"PROMPT": "a kite"}\n{"prompt": "a lamp"}\n'),
    ],
)
def test_files_of_every_usual_form_are_built_without_a_flag(tmp_path: Path, name: str, content: str) -> None:
    assert built(tmp_path, name, content)["prompt"].to_pylist() == TWO


def test_numbers_with_a_comma_are_read_where_semicolons_divide_cells(tmp_path: Path) -> None:
    table = built(tmp_path, "a.csv", 'prompt;seed;guidance_scale;note\n"a kite; from the left";4;7,5;1,5\nb;;8;\n')
    assert table.to_pylist() == [
        {"prompt": "a kite; from the left", "seed": 4, "guidance_scale": 7.5, "note": "1,5"},
        {"prompt": "b", "seed": None, "guidance_scale": 8.0, "note": None},
    ]


def test_a_comma_in_a_number_is_refused_where_commas_divide_cells(tmp_path: Path) -> None:
    assert "guidance_scale='7,5', a finite number" in refused(tmp_path, "b.csv", 'prompt,guidance_scale\na,"7,5"\n')


def test_what_was_read_in_another_way_than_it_is_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",Prompt,Seed\n0,a kite,4\n")
    result = build(str(tmp_path / "a.csv"), tmp_path / "a.parquet")
    assert result.columns == ("prompt", "seed")
    assert result.warnings == (
        "column 'Prompt' is read as 'prompt'",
        "column 'Seed' is read as 'seed'",
        "the column without a name is left out",
    )


@pytest.mark.parametrize(
    ("name", "content", "options", "told"),
    [
        ("a.csv", "id,text\n1,a kite\n", {}, "which of the columns found ('id', 'text') it is: --prompt-column NAME"),
        ("a.tsv", "id\ttext\n1\ta kite\n", {}, "columns found ('id', 'text')"),
        ("a.csv", "id/text\n1/a kite\n", {}, "--delimiter"),
        ("a.csv", "prompt,Prompt\na,b\n", {}, "prompt, the column is there more than once"),
        ("a.csv", "text,text\na,b\n", {"prompt_column": "text"}, "the column is there more than once"),
        ("a.jsonl", '{"text": "a"}\n', {}, "say which column it is: --prompt-column text"),
        ("a.jsonl", '{"prompt": "a", "PROMPT": "b"}\n', {}, "line 1: prompt='a', columns 'prompt' and 'PROMPT'"),
        ("a.json", '{"a": [{"prompt": "x"}], "b": [{"prompt": "y"}]}', {}, "2 lists of rows: 'a', 'b'; say which one"),
        ("a.json", '{"a": 1}', {}, "the document has no list of rows"),
        ("a.json", '{"a": [{"prompt": "x"}]}', {"records": "c"}, "--records 'c', the document has 'a'; name a list"),
        ("a.json", '[{"prompt": "x"}, 3]', {}, "row 1: 3, an object is needed"),
        ("a.json", '[{"prompt": "x"}, {"prompt": ""}]', {}, "row 1: prompt='', a prompt that is not empty"),
        ("a.json", '[{"prompt": "x"', {}, "this is not JSON"),
        ("a.json", "[" * 200_000, {}, "this is not JSON"),
        ("a.jsonl", "[" * 200_000, {}, "line 1: this is not JSON"),
        ("a.jsonl", json.dumps({"prompt": "a"} | {f"c{i}": 1 for i in range(1001)}), {}, "more than 1000 columns"),
    ],
)  # fmt: skip
def test_where_a_choice_is_needed_the_flag_and_what_was_found_are_told(
    tmp_path: Path, name: str, content: str, options: dict[str, Any], told: str
) -> None:
    assert told in refused(tmp_path, name, content, **options)


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", "id,text\n1,a kite\n2,a lamp\n", {"prompt_column": "text"}),
        ("a.csv", "id/text\n1/a kite\n2/a lamp\n", {"prompt_column": "text", "delimiter": "/"}),
        ("a.jsonl", '{"caption": "a kite"}\n{"caption": "a lamp"}\n', {"prompt_column": "caption"}),
        ("a.json", '{"a": [{"prompt": "x"}], "b": [{"prompt": "a kite"}, {"prompt": "a lamp"}]}', {"records": "b"}),
        ("a.json", '{"records": [{"prompt_en": "a kite"}, {"prompt_en": "a lamp"}]}', {"prompt_column": "prompt_en"}),
    ],
)
def test_a_flag_makes_the_choice(tmp_path: Path, name: str, content: str, options: dict[str, Any]) -> None:
    assert built(tmp_path, name, content, **options)["prompt"].to_pylist() == TWO


def test_a_line_that_is_too_long_is_refused_and_not_kept(tmp_path: Path) -> None:
    long = "a" * (MAX_LINE_BYTES + 1)
    for name, content in (
        ("a.txt", f"fine\n{long}\nfine\n"),
        ("a.jsonl", f'{{"prompt": "fine"}}\n{{"prompt": "{long}"}}\n'),
        ("a.csv", f"prompt\n{long}\nfine\n"),
    ):
        assert "line 2: the line is longer than 16,777,216 bytes; shorten it" in refused(tmp_path, name, content)
    rows = "prompt,x\n" + 'a,"' + ("b" * 100_000 + '\n","') * 200
    assert "this is not CSV (a row is longer than 16,777,216 characters)" in refused(tmp_path, "a.csv", rows)


def copied(link: Path, source: Path) -> None:
    link.symlink_to(source)


@pytest.mark.parametrize("make", [copied, lambda link, source: link.hardlink_to(source)], ids=["link", "hard link"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_source_is_never_written_over(tmp_path: Path, make: Callable[[Path, Path], None], overwrite: bool) -> None:
    source = tmp_path / "a.csv"
    source.write_text("prompt\na kite\n")
    make(tmp_path / "other.csv", source)
    (tmp_path / "folder").symlink_to(tmp_path)
    for name in (source, tmp_path / "." / "a.csv", tmp_path / "other.csv", tmp_path / "folder" / "a.csv"):
        for given in (str(source), f"file://{source}", os.path.relpath(source)):
            with pytest.raises(ManifestError, match="it is the source itself"):
                build(given, name, overwrite=overwrite)
    assert source.read_text() == "prompt\na kite\n"


def test_an_existing_manifest_is_replaced_only_when_the_user_says_so_and_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "a.txt", tmp_path / "a.parquet"
    source.write_text("a kite\n")
    build(str(source), target)
    first = target.read_bytes()
    source.write_text("a lamp\n")
    with pytest.raises(ManifestError, match=r"a\.parquet: the file exists; name another file, or .* --force"):
        build(str(source), target)
    assert target.read_bytes() == first
    (tmp_path / "link.parquet").symlink_to(target)
    build(str(source), tmp_path / "link.parquet", overwrite=True)
    assert pq.read_table(target)["prompt"].to_pylist() == ["a lamp"]
    assert (tmp_path / "link.parquet").is_symlink()
    source.write_bytes(b"\xff\n")
    before = target.read_bytes()
    with pytest.raises(ManifestError):
        build(str(source), target, errors_path=tmp_path / "errors", overwrite=True)
    assert target.read_bytes() == before
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))
    with pytest.raises(ManifestError, match="it is a folder"):
        build(str(source), tmp_path, overwrite=True)
    source.write_text("a kite\n")
    with pytest.raises(ManifestError, match="it cannot be written"):
        build(str(source), tmp_path / "nowhere" / "a.parquet")


def test_prompts_that_end_with_references_as_open_sora_writes_them_are_read_so(tmp_path: Path) -> None:
    table = built(
        tmp_path,
        "a.txt",
        'a boat drifts.{"reference_path": "p/boat.png;p/b.png", "mask_strategy": "0;0,1,0,-1"}\n'
        "|0| a shore |2| a storm\n"
        'a kite.  {"reference_path": "a.png"}\n'
        "a lantern sways. aesthetic score: 6.5. camera motion: pan left.\n"
        "a {red|blue} ball, {}\n",
    )
    assert table.to_pylist() == [
        {"prompt": "a boat drifts.", "references": ["p/boat.png", "p/b.png"], "mask_strategy": "0;0,1,0,-1"},
        {"prompt": "|0| a shore |2| a storm", "references": None, "mask_strategy": None},
        {"prompt": "a kite.", "references": ["a.png"], "mask_strategy": None},
        {"prompt": "a lantern sways. aesthetic score: 6.5. camera motion: pan left.", "references": None,
         "mask_strategy": None},
        {"prompt": "a {red|blue} ball, {}", "references": None, "mask_strategy": None},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ('a boat.{"reference_path": "a.png"', "its end is not JSON such as"),
        ('a boat.{"reference_path": "a.png"} and more', "its end is not JSON such as"),
        ('a boat.{"reference_path": ["a.png"]}', 'its end has reference_path=["a.png"], a string is needed'),
        ('a boat.{"reference_path": "a.png", "mask": "0"}', "its end names 'mask', allowed are reference_path and"),
    ],
)
def test_an_end_that_cannot_be_read_is_refused_by_its_line(tmp_path: Path, prompt: str, told: str) -> None:
    message = refused(tmp_path, "a.txt", f"fine\n{prompt}\n")
    assert "line 2: prompt='a boat." in message
    assert told in message
    assert "columns references and mask_strategy" in message
    with pytest.raises(ValueError, match="its end"):
        split_suffix(prompt)


def test_references_in_a_prompt_and_in_columns_are_one_too_many(tmp_path: Path) -> None:
    content = 'prompt,references\n"a boat.{""reference_path"": ""a.png""}",b.png\n'
    assert "its end names references, and so do the row's columns" in refused(tmp_path, "a.csv", content)


def test_a_parquet_manifest_whose_prompts_end_with_references_is_refused_by_row(
    manifest: Callable[..., str], tmp_path: Path
) -> None:
    url = manifest({"prompt": ["fine", 'a boat.{"reference_path": "a.png"}', "a {red} ball"]})
    with pytest.raises(ManifestError, match=r"row 1: prompt='a boat.*it ends with JSON of references") as caught:
        validate(url, {"wan": family()}, default_model="wan", errors_path=tmp_path / "errors")
    assert caught.value.num_problems == 1


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"prompt_id": ["p"], "prompt_text": ["a"]}, "rename 'prompt_text' to 'prompt'"),
        ({"prompt_id": [1], "Prompt": ["a"]}, "rename 'Prompt' to 'prompt'"),
        ({"negative_prompt": ["a"], "prompt_en": ["b"]}, "rename 'prompt_en' to 'prompt'"),
        (
            {"prompt_id": ["p"], "caption": ["a"]},
            "add it, or rename the right one of those found: 'prompt_id', 'caption'",
        ),
    ],
)
def test_the_column_that_is_named_as_the_prompt_is_text_and_no_id(
    manifest: Callable[..., str], columns: dict[str, list[object]], told: str
) -> None:
    with pytest.raises(ManifestError, match=told):
        validate(manifest(columns), {"wan": family()}, default_model="wan")


def test_decimals_are_numbers(manifest: Callable[..., str], tmp_path: Path) -> None:
    scale = pa.array([Decimal("7.5"), None], pa.decimal128(4, 1))
    seed = pa.array([Decimal(2**62 + 1), Decimal(3)], pa.decimal128(30, 2))
    url = manifest({"prompt": TWO, "guidance_scale": scale, "seed": seed})
    assert validate(url, {"wan": family()}, default_model="wan").num_rows == 2
    url = manifest({"prompt": TWO, "seed": pa.array([Decimal("1.5"), Decimal(3)], pa.decimal128(4, 1))})
    with pytest.raises(ManifestError, match=r"row 0: seed=1\.5, a whole number within int64 is needed"):
        validate(url, {"wan": family()}, default_model="wan", errors_path=tmp_path / "errors")
