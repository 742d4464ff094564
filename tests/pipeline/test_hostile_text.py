"""What a manifest says reaches the terminal and the list of problems as text, whatever place of a manifest it stands in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.pipeline.command import ROOT, Command, environment

ESCAPE = "\x1b]0;owned\x07\x1b[31m\x9b1m\u202ered"
WORD = "owned"


def parquet_columns() -> Iterator[tuple[str, dict[str, Any]]]:
    prompts = {"prompt": ["a cat", "a dog"]}
    for name in ("references", "clip_id", "model", "broadcast", "mask_strategy"):
        yield name, prompts | {name: [ESCAPE, None]}
    for url in (f"https://127.0.0.1:9/{ESCAPE}", f"{ESCAPE}://x", f"s3://{ESCAPE}/a.png", f"/nowhere/{ESCAPE}.png"):
        yield "a URL", prompts | {"references": [[url], None]}
    yield "a prompt", {"prompt": [ESCAPE + "a" * 9000, "b"]}
    yield "no prompt", {f"prompt{ESCAPE}": ["a"]}
    yield "a column that looks like ours", prompts | {f"{ESCAPE}seed": [1, 2], "references": ["gone.png", None]}
    kind = pa.struct([(ESCAPE, pa.int64())])
    yield "a type", prompts | {"num_frames": pa.array([{ESCAPE: 1}, None], kind)}
    yield "a type of text", prompts | {"clip_id": pa.array([{ESCAPE: 1}, None], kind)}


def sources() -> Iterator[tuple[str, str]]:
    yield f"{ESCAPE}.csv", "id\n1\n"
    yield "a.csv", f"id,{ESCAPE}\n1,2\n"
    yield "b.csv", f"prompt,fps\na,{ESCAPE}\n"
    yield f"c.{ESCAPE}", "a"
    yield "d.jsonl", json.dumps({"prompt": "a", "seed": ESCAPE})
    yield "e.jsonl", json.dumps({ESCAPE: "a"})
    yield "f.json", json.dumps({ESCAPE: [{"prompt": "a"}], "b": [{"prompt": "a"}]})
    yield "g.txt", 'a.{"reference_path": 1, "' + ESCAPE.replace("\x1b", "\\u001b").replace("\x07", "\\u0007") + '": 2}'
    yield "h.jsonl", f'{{"{ESCAPE}'


def assert_told_safely(command: Command, words: list[str], name: str) -> None:
    for flags in ([], ["--json"]):
        ran = command.run(*words, *flags)
        told = ran.stdout + ran.stderr
        assert ran.returncode == 4, told
        assert all(line.isprintable() for line in told.split("\n")), (name, told)
    for file in command.folder.glob("*.jsonl"):
        kept = file.read_text()
        assert all(line.isprintable() for line in kept.split("\n")), (name, kept)
        assert all(json.loads(line) for line in kept.splitlines())
        file.unlink()


def test_text_of_a_manifest_cannot_move_the_cursor_wherever_it_stands(command: Command, tmp_path: Path) -> None:
    shown = 0
    for name, columns in parquet_columns():
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table(columns), path)
        assert_told_safely(command, ["manifest", "validate", str(path)], name)
        shown += WORD in command.run("manifest", "validate", path).stderr
    assert shown > 8, "the text itself is told"


def test_text_of_a_source_cannot_move_the_cursor_wherever_it_stands(command: Command, tmp_path: Path) -> None:
    for name, content in sources():
        (tmp_path / name).write_text(content)
        assert_told_safely(command, ["manifest", "build", str(tmp_path / name), str(tmp_path / "out.parquet")], name)


def test_a_warning_of_a_library_is_told_as_one_safe_line() -> None:
    code = (
        "import warnings; from pipeline.command_line import _log_to_stderr; _log_to_stderr();"
        f"warnings.warn({ESCAPE!r} + chr(10) + 'next', stacklevel=1)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment()
    )
    assert WORD in ran.stderr
    assert ran.stderr.removesuffix("\n").isprintable()
