"""A webhook is told how a run stands, and nobody else learns its address."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.environment import for_child, for_slurm
from pipeline.screen import Screen
from pipeline.signals.notify import Notifier, many_failed, read_channels, read_share
from pipeline.signals.webhook import Webhook
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
    notifier = Notifier(channels=[Webhook(url=url)], output="out", run_id="0" * 12, screen=Screen())
    notifier.tell("end", "done", {"exit_code": 0})


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
    "text",
    [
        "hooks.example.org", "file:///etc/passwd", "https://", "https://a/\x1b[2J", "https://a:port/",
        f"https://user:{SECRET}@hooks.example.org/", f"htps://hooks.example.org/{SECRET}", "mailto:me@a/b",
    ],
)  # fmt: skip
def test_what_nobody_can_be_told_by_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"needs (a URL|addresses) such as") as refused:
        read_channels([text])
    assert SECRET not in str(refused.value)


def test_several_are_told_and_a_wrong_one_is_named_by_its_place_only(command: Command, manifest: Manifest) -> None:
    assert read_channels(["https://a/b mailto:me@site.org", "http://c"]) == (
        "https://a/b", "mailto:me@site.org", "http://c",
    )  # fmt: skip
    ran = command.run(*command.submit_words(manifest(1), Path("out"), "--notify", f"htps://a/{SECRET}"))
    assert (ran.returncode, SECRET in ran.stderr + ran.stdout) == (2, False)
    assert "error: --notify needs a URL such as https://hooks.example.org/run or mailto:me@site.org" in ran.stderr


def test_many_failures_are_a_fifth_of_at_least_ten() -> None:
    assert many_failed(rendered=8, failed=2)
    assert not many_failed(rendered=90, failed=10)
    assert not many_failed(rendered=0, failed=9)
    assert many_failed(rendered=90, failed=10, share=read_share("10%"))
    assert not many_failed(rendered=91, failed=9, share=read_share("0.1"))


@pytest.mark.parametrize("text", ["0", "0%", "-1", "101%", "1.5", "nan", "many", "%", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs a share above 0% and up to 100%"):
        read_share(text)


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


def test_no_job_and_no_slurm_client_gets_what_is_the_drivers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAB_PIPELINE_NOTIFY", "PAB_PIPELINE_OTLP", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.setenv(name, SECRET)
    assert SECRET not in [*for_child().values(), *for_slurm().values()]
