"""Text from elsewhere on the screen: prompts, URLs, ids, what a store or a job says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.screen import Screen, own_command

ESCAPE = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e"


def test_whatever_is_shown_holds_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.note(f"one\n\ttwo {ESCAPE}")
    screen.result({}, ESCAPE)
    screen.error("kind", ESCAPE, 1)
    out, err = capsys.readouterr()
    assert out == "\\x1b]0;owned\\x07\\x1b[31m\\x9b2J\\u202e\n"
    assert err.startswith("one\n\ttwo \\x1b]0;owned")
    assert all(each.isprintable() for each in (out + err).replace("\t", "").split("\n"))


def test_a_command_that_is_told_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/pab-pipeline"])
    told = own_command("retry", "/my runs/it's $HOME\n*")
    assert told.startswith("pab-pipeline retry '/my runs")
    assert shlex.split(told) == ["pab-pipeline", "retry", "/my runs/it's $HOME\n*"]
    assert own_command("status", "s3://videos/run1") == "pab-pipeline status s3://videos/run1"


def test_json_holds_the_text_as_it_is_in_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(as_json=True).result({"prompt": ESCAPE}, "")
    out = capsys.readouterr().out
    assert json.loads(out) == {"prompt": ESCAPE}
    assert out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": ["a"], "references": [f"file:///tmp/{ESCAPE}red.png"]},
        {"prompt": ["a"], "model": [f"demo{ESCAPE}"]},
        {"prompt": ["a"], f"promt{ESCAPE}": ["b"]},
        {"prompt": ["a"], "references": ["file:///tmp/a\nerror: all is well.png"]},
    ],
)
def test_a_manifest_cannot_write_to_the_terminal(
    columns: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    main(["manifest", "validate", "m.parquet"])
    out, err = capsys.readouterr()
    shown = (out + err).split("\n")
    assert all(line.replace("\t", "").isprintable() for line in shown)
    assert "error: all is well" not in [line[:19] for line in shown]
