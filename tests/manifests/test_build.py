from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import validate
from manifests.build import build
from manifests.demo import DEMO_CSV, DEMO_PARQUET, build_demo
from manifests.errors import ManifestError
from manifests.schema import VERSION_KEY
from manifests.sources.options import SourceOptions
from tests.manifests.conftest import family


def built(tmp_path: Path, name: str, content: str | bytes, **options: Any) -> pa.Table:
    source = tmp_path / name
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    if "prompt_column" in options:
        options["columns"] = {"prompt": options.pop("prompt_column")}
    said = SourceOptions(**options)
    build(str(source), tmp_path / "built.parquet", options=said, errors_path=tmp_path / "errors.jsonl")
    return pq.read_table(tmp_path / "built.parquet")


def refused(tmp_path: Path, name: str, content: str | bytes, **options: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        built(tmp_path, name, content, **options)
    assert not (tmp_path / "built.parquet").exists()
    return str(caught.value)


def test_csv_cells_become_typed_values_and_empty_cells_null(tmp_path: Path) -> None:
    table = built(
        tmp_path,
        "clips.csv",
        "\ufeffprompt, seed,guidance_scale,num_steps,source\n"
        '"a cat, asleep",9223372036854775807,7,30.0,x1\n'
        '"two\nlines 猫",,,,\n',
    )
    assert table.schema.types == [pa.string(), pa.int64(), pa.float64(), pa.int64(), pa.string()]
    assert table.to_pylist() == [
        {"prompt": "a cat, asleep", "seed": 2**63 - 1, "guidance_scale": 7.0, "num_steps": 30, "source": "x1"},
        {"prompt": "two\nlines 猫", "seed": None, "guidance_scale": None, "num_steps": None, "source": None},
    ]
    assert table.schema.metadata[VERSION_KEY] == b"1"


def test_jsonl_keeps_types_and_joins_the_columns_of_all_lines(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "rank": 1, "mixed": 1, "tags": ["x"], "score": 1},
        {"prompt": "b", "mixed": "two", "score": 0.5, "late": True, "seed": 3},
    ]
    table = built(tmp_path, "clips.jsonl", "\n\n".join(json.dumps(line) for line in lines))
    assert table.to_pylist() == [
        {"prompt": "a", "rank": 1, "mixed": "1", "tags": '["x"]', "score": 1.0, "late": None, "seed": None},
        {"prompt": "b", "rank": None, "mixed": "two", "tags": None, "score": 0.5, "late": True, "seed": 3},
    ]


def test_text_has_one_prompt_per_line(tmp_path: Path) -> None:
    assert built(tmp_path, "prompts.txt", "a cat\r\n\n  ein Mädchen \n")["prompt"].to_pylist() == [
        "a cat",
        "ein Mädchen",
    ]


def test_a_source_is_read_from_any_fsspec_url(tmp_path: Path) -> None:
    with fsspec.open("memory://build/prompts.txt", "wb") as file:
        file.write(b"a\nb\n")
    result = build("memory://build/prompts.txt", tmp_path / "built.parquet")
    assert (result.num_rows, result.columns, result.warnings) == (2, ("prompt",), ())


def test_a_misspelled_column_gives_a_warning(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("prompt,hieght\na,64\n")
    assert build(str(tmp_path / "c.csv"), tmp_path / "b.parquet").warnings == (
        "column 'hieght' is kept as an extra column; if 'height' is meant, rename it",
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "prompt,fps\na,8\nb,fast\n", "line 3: fps='fast', an integer within int64 is needed; fix the line"),
        ("c.csv", 'prompt,fps\n"a\nb",8\nc,2.5\n', "line 4: fps='2.5', an integer within int64 is needed"),
        (
            "c.csv",
            "prompt,seed\na,9223372036854775808\n",
            "line 2: seed='9223372036854775808', an integer within int64",
        ),
        ("c.csv", "prompt,guidance_scale\na,nan\n", "line 2: guidance_scale='nan', a finite number is needed"),
        ("c.csv", "prompt,fps\n,8\n", "line 2: prompt=null, a prompt that is not empty is needed"),
        (
            "c.csv",
            "prompt,fps\na,b,8\n",
            "line 2: 3 cells, the header has 2; fix the line, quote cells that hold a comma",
        ),
        ("c.csv", 'prompt\n"a" b\n', "line 2: this is not CSV"),
        ("c.csv", b"prompt\n\xff\n", r"line 2: b'\xff\n', valid UTF-8 is needed; save it as UTF-8"),
        (
            "c.csv",
            "text\na\n",
            "line 1: prompt, the column is required and missing; name the columns in the first line",
        ),
        ("c.csv", "", "line 1: prompt, the column is required and missing; add a header and prompts"),
        ("c.csv", "prompt,fps,fps\na,1,2\n", "line 1: fps, the column is there more than once; drop all but one"),
        ("c.csv", "prompt,\na,1\n", "line 1: column 2 has no name; name it or drop it"),
        ("c.csv", "prompt\n", "the file has no prompts; add at least one"),
        ("c.jsonl", '{"prompt": "a"}\n{"prompt": }\n', "line 2: this is not JSON (Expecting value"),
        (
            "c.jsonl",
            '{"prompt": "a", "prompt": "b"}\n',
            "line 1: this is not JSON (the name 'prompt' is there more than",
        ),
        ("c.jsonl", '["a"]\n', 'line 1: ["a"], an object is needed; fix the line'),
        ("c.jsonl", '{"prompt": 5}\n', "line 1: prompt=5, a string is needed; fix the line"),
        ("c.jsonl", '{"text": "a"}\n', "line 1: prompt=null, a prompt that is not empty is needed"),
        ("c.jsonl", '{"prompt": "a", "fps": true}\n', "line 1: fps=True, an integer within int64 is needed"),
        (
            "c.jsonl",
            '{"prompt": "a", "guidance_scale": NaN}\n',
            "line 1: guidance_scale=nan, a finite number is needed",
        ),
        ("c.txt", b"fine\n\xfe\n", "line 2: b'\\xfe\\n', valid UTF-8 is needed; save it as UTF-8"),
        ("c.txt", "\n \n", "the file has no prompts; add at least one"),
        (
            "c.xlsx",
            "a kite\n",
            "the ending '.xlsx' is not known, allowed: .csv, .json, .jsonl, .ndjson, .parquet, .pq, .tab, .tsv, .txt, and",
        ),
        ("c.xlsx", "a kite\n", "say what it is: --format csv|tsv|json|jsonl|text|parquet"),
        ("c.xlsx", b"PK\x03\x04\x00", "the file is a ZIP, Excel or PDF file; unpack it, or save the table as CSV"),
        ("c.parquet", "a kite\n", "the file is not Parquet"),
        ("c.csv.gz", b"\x1f\x8b\x08\x00", "it cannot be read or unpacked"),
        ("c.txt", b"a\x00 \x00k\x00", "the file is no text in UTF-8; name its encoding, such as --encoding utf-16-le"),
        (
            "c.txt",
            b"fine\na caf\xe9\n",
            "line 2: b'a caf\\xe9\\n', valid UTF-8 is needed; save it as UTF-8, or name its",
        ),
        ("c.txt", b"fine\na caf\xe9\n", "--encoding windows-1252 would read 'a caf\u00e9'"),
        ("c.json", b'["a caf\xe9 at night"]', "--encoding windows-1252 would read '[\"a caf\u00e9 at night\"]'"),
        ("c.json", b'{"info": {}, "prompts": ["caf\xe9"]}', "--encoding windows-1252 would read"),
    ],
)
def test_a_bad_source_names_the_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    assert message in refused(tmp_path, name, content)


def test_huge_numbers_in_json_are_bad_values_and_no_crash(tmp_path: Path) -> None:
    message = refused(tmp_path, "c.jsonl", '{"prompt": "a", "seed": 1' + "0" * 400 + "}")
    assert "line 1: seed=1000" in message


def test_all_bad_lines_are_in_one_error(tmp_path: Path) -> None:
    message = refused(tmp_path, "c.csv", "prompt,fps\n" + "a,x\n" * 30)
    assert "30 problems" in message
    assert "... and 10 more" in message
    assert len((tmp_path / "errors.jsonl").read_text().splitlines()) == 30


def test_a_missing_source_says_so(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv: the file does not exist; check the path"):
        build(str(tmp_path / "none.csv"), tmp_path / "b.parquet")


def test_the_committed_demo_manifest_is_what_its_csv_builds(tmp_path: Path) -> None:
    build_demo(tmp_path / "demo.parquet")
    committed = pq.read_table(DEMO_PARQUET)
    assert committed.equals(pq.read_table(tmp_path / "demo.parquet"), check_metadata=True)
    assert committed.num_rows == len(DEMO_CSV.read_text().splitlines()) - 1 == 8


def test_a_built_manifest_can_be_accepted(tmp_path: Path) -> None:
    built(tmp_path, "prompts.txt", "a cat\na dog\n")
    result = validate(str(tmp_path / "built.parquet"), {"wan": family()}, default_model="wan")
    assert result.num_rows == 2
