"""What a small Parquet file may cost: the headers of its pages are read before its values. Real files of every form."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import validate
from manifests.errors import ManifestError
from manifests.pages import BadPageError, ColumnPages, read_pages
from manifests.read import open_manifest
from tests.manifests.conftest import family

Write = Callable[..., str]

MEASURED = """
import resource, sys
from manifests.accept import validate
from manifests.errors import ManifestError
from tests.manifests.conftest import family
import pyarrow.compute
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    validate(sys.argv[1], {"wan": family()}, default_model="wan", errors_path=sys.argv[1] + ".errors")
except ManifestError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def cost(url: str) -> tuple[str, int]:
    """What validating a file says, and the MB of memory that it adds to the process."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, url], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    *told, added = ended.stdout.splitlines()
    return "\n".join(told), int(added)


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_value_of_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_is_read(
    manifest: Write, dictionary: bool
) -> None:
    url = manifest(
        {"prompt": ["fine", "a" * (140 << 20)]}, compression="zstd", use_dictionary=dictionary, row_group_size=1
    )
    assert Path(url).stat().st_size < 100_000
    told, added_mb = cost(url)
    assert "row 1: prompt, its value has 147 MB in one page, at most 134 MB are read; shorten the values" in told
    assert added_mb < 60


def test_a_large_value_costs_little_more_than_its_page(manifest: Write) -> None:
    told, added_mb = cost(manifest({"prompt": ["a" * (60 << 20), "fine"]}, compression="zstd", use_dictionary=False))
    assert "row 0: prompt='aaaa" in told
    assert f"{60 << 20} characters, at most 200 are allowed" in told
    assert added_mb < 350


def test_a_large_value_that_every_row_names_is_refused_before_it_is_unpacked_for_each(manifest: Write) -> None:
    prompts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["a" * (1 << 20)]))
    told, added_mb = cost(manifest({"prompt": prompts}))
    assert "row 0: prompt, rows 0 to 99999 have 1,048,576 bytes in one value, at most 262,144 are read" in told
    assert added_mb < 100


@pytest.mark.parametrize("encoding", [None, "DELTA_BYTE_ARRAY"])
def test_an_extra_column_of_large_values_is_read_in_small_batches(manifest: Write, encoding: str | None) -> None:
    size, rows = 1 << 19, 2000
    options: dict[str, Any] = {"column_encoding": {"notes": encoding}, "use_dictionary": False} if encoding else {}
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["b" * size]))
    notes = values if encoding is None else values.slice(0, 100).dictionary_decode()
    url = manifest({"prompt": ["a"] * len(notes), "notes": notes}, **options)
    with open_manifest(url) as file:
        largest = max(batch.num_rows for batch in file.iter_batches())
    assert largest * size <= 256 << 20
    assert validate(url, {"wan": family()}, default_model="wan").num_rows == len(notes)


FORMS: tuple[Mapping[str, Any], ...] = (
    {},
    {"compression": "none", "use_dictionary": False},
    {"data_page_version": "2.0", "data_page_size": 500},
    {"data_page_size": 300, "compression": "gzip", "write_page_index": True},
    {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "number": "DELTA_BINARY_PACKED"}},
    {"row_group_size": 700, "write_page_checksum": True, "dictionary_pagesize_limit": 200},
)


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_the_pages_of_every_form_of_file_are_found(tmp_path: Path, options: Mapping[str, Any]) -> None:
    rows = 3000
    table = pa.table(
        {
            "text": [f"{i % 40} of {i}" for i in range(rows)],
            "number": range(rows),
            "null": pa.nulls(rows, pa.float64()),
            "list": [[f"{i}"] * (i % 4) for i in range(rows)],
            "flag": [i % 3 == 0 for i in range(rows)],
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, **options)
    metadata = pq.read_metadata(path)
    with path.open("rb") as stream:
        for group in range(metadata.num_row_groups):
            for at in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(at)
                start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
                args = (stream, start, chunk.total_compressed_size)
                pages = read_pages(*args, most_bytes=1 << 20, num_values=chunk.num_values)
                assert pages.starts[-1] == chunk.num_values
                held = int(pages.sizes.sum()) + pages.dictionary_bytes
                headers = chunk.total_uncompressed_size - held
                assert 0 < headers < 200 * (len(pages.sizes) + 1)
                assert chunk.has_dictionary_page or not pages.dictionary_bytes
                assert (pages.repeats > 0) == ("DELTA_BYTE_ARRAY" in chunk.encodings)


def test_large_rows_that_lie_together_are_counted_where_they_lie() -> None:
    pages = ColumnPages(
        starts=np.array([0, 10, 20, 30]), sizes=np.array([5, 1000, 7]), dictionary_bytes=0, repeats=0
    )  # fmt: skip
    assert pages.window_bytes(1) == 1007
    assert pages.window_bytes(30) == 1012
    assert pages.window_bytes(10**6) == 1012


def test_bytes_that_are_no_page_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for data in (b"", b"\xff" * 200, b"\x1c" * 200, b"\x15\x00" * 100, bytes(100)):
        path.write_bytes(data)
        with path.open("rb") as stream, pytest.raises(BadPageError):
            read_pages(stream, 0, 200, most_bytes=100, num_values=1)
    pq.write_table(pa.table({"prompt": ["a" * 300] * 9}), path, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4:30] = b"\xff" * 26
    path.write_bytes(data)
    with pytest.raises(ManifestError, match="the file is damaged"):
        validate(str(path), {"wan": family()}, default_model="wan", errors_path=tmp_path / "errors")
