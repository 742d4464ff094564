"""A webhook is told how a run stands, and nobody else learns its address."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.notify import Notifier, many_failed, webhook
from pipeline.screen import Screen
from tests.pipeline.command import Command

Manifest = Callable[..., Path]
SECRET = "very-secret"


class Hook(http.server.BaseHTTPRequestHandler):
    told: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(302 if self.path.endswith("elsewhere") else 404 if "gone" in self.path else 204)
        self.send_header("Location", "http://127.0.0.1:9/other")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    told: list[dict[str, Any]] = []
    server = http.server.HTTPServer(("127.0.0.1", 0), type("OneHook", (Hook,), {"told": told}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{SECRET}", told
    server.shutdown()
    server.server_close()


def tell(url: str) -> None:
    Notifier(url=url, output="out", run_id="0" * 12, screen=Screen()).tell("end", "done", {"exit_code": 0})


def test_what_does_not_arrive_is_noted_without_the_secret(
    hook: tuple[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, told = hook
    tell(url)
    assert capsys.readouterr().err == ""
    assert told == [{"event": "end", "text": "done", "output": "out", "run_id": "0" * 12, "exit_code": 0}]
    for wrong, why in ((f"{url}/gone", "it answers 404"), (f"{url}/elsewhere", "not followed")):
        tell(wrong)
        said = capsys.readouterr().err
        assert "the notification (end) did not reach 127.0.0.1: " in said
        assert (why in said, SECRET in said) == (True, False)
    tell(f"http://127.0.0.1:1/{SECRET}")
    said = capsys.readouterr().err
    assert ("refused" in said, SECRET in said) == (True, False)


@pytest.mark.parametrize(
    "text", ["hooks.example.org", "file:///etc/passwd", "https://", "https://a/\x1b[2J", "http://a b"]
)
def test_what_is_no_webhook_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs a URL such as"):
        webhook(text)


def test_many_failures_are_a_fifth_of_at_least_ten() -> None:
    assert many_failed(rendered=8, failed=2)
    assert not many_failed(rendered=90, failed=10)
    assert not many_failed(rendered=0, failed=9)


def test_a_submit_tells_its_end_and_leaves_the_address_nowhere(
    command: Command, manifest: Manifest, tmp_path: Path, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    url, told = hook
    output = tmp_path / "out"
    ran = command.run(*command.submit_words(manifest(1), output, "--notify", url, "--budget", "0.000001"))
    assert ran.returncode == 0, ran.stderr
    assert [each["event"] for each in told] == ["budget", "end"]
    assert (told[-1]["exit_code"], told[-1]["clips"]) == (0, {"rendered": 1})
    found = [path for path in output.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert (found, SECRET in ran.stdout + ran.stderr) == ([], False)
