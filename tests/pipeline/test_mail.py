"""Mail goes out through the system's mailer, and one that fails costs nothing but the mail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from pipeline.screen import Screen
from pipeline.signals.mail import Mail, open_mail, read_addresses
from pipeline.signals.notify import Notifier
from tests.pab.poisoned import poison_file
from tests.pipeline.command import Command

Manifest = Callable[..., Path]
_KEEPS = """#!/bin/sh
number=$(ls "$0".told | wc -l)
printf '%s\\n' "$@" > "$0".told/$number.words
env > "$0".env
cat > "$0".told/$number.mail
"""


def mailer(folder: Path, name: str = "sendmail", text: str = _KEEPS) -> Path:
    """Returns a program that keeps what it gets beside itself."""
    program = folder / "bin" / name
    Path(f"{program}.told").mkdir(parents=True)
    program.write_text(text)
    program.chmod(0o700)
    return program


def told(program: Path) -> list[Message]:
    files = sorted(Path(f"{program}.told").glob("*.mail"), key=lambda path: int(path.stem))
    return [message_from_bytes(path.read_bytes()) for path in files]


def words(program: Path) -> list[str]:
    return next(Path(f"{program}.told").glob("*.words")).read_text().splitlines()


def by(program: Path, addresses: str = "mailto:me@site.org,you@site.org") -> Mail:
    search_path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return open_mail(addresses, {"PATH": search_path, "PAB_PIPELINE_NOTIFY": "https://a/very-secret"})


def test_mail_is_handed_to_sendmail_with_its_headers_and_without_our_secrets(tmp_path: Path) -> None:
    program = mailer(tmp_path)
    assert by(program).send("end\nBcc: all@site.org", "two\nlines, caf\xe9\n.\n\x1b[2J") is None
    (message,) = told(program)
    assert words(program) == ["-t", "-i"]
    assert (message["To"], message["Bcc"], message["Subject"]) == (
        "me@site.org, you@site.org", None, "end\\nBcc: all@site.org",
    )  # fmt: skip
    assert message["Auto-Submitted"] == "auto-generated"
    body = message.get_payload(decode=True)
    assert isinstance(body, bytes)
    assert body.decode() == "two\nlines, caf\xe9\n.\n\\x1b[2J\n"
    assert "very-secret" not in Path(f"{program}.env").read_text()


def test_mail_and_mailx_get_addresses_as_words_and_no_line_that_they_would_carry_out(tmp_path: Path) -> None:
    program = mailer(tmp_path, "mailx")
    channel = replace(by(mailer(tmp_path / "any")), program=str(program))
    assert channel.send("end", "a\n~!touch x") is None
    assert words(program) == ["-s", "end", "me@site.org", "you@site.org"]
    (file,) = Path(f"{program}.told").glob("*.mail")
    assert file.read_text() == "a\n ~!touch x\n"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("#!/bin/sh\necho 'no \033[2J way' >&2\nexit 75\n", r"the program ended with 75: no \x1b[2J way"),
        ("#!/no/such/interpreter\n", "the program cannot be run: No such file or directory"),
    ],
)
def test_a_mailer_that_fails_is_told_and_nothing_more(
    script: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = mailer(tmp_path, text=script)
    Notifier(channels=[by(program, "mailto:me@site.org")], output="out", run_id="0", screen=Screen()).tell(
        "end", "done"
    )
    said = capsys.readouterr().err
    assert said == f"the notification (end) did not reach me@site.org (by sendmail): {problem}\n"


@pytest.mark.parametrize(
    "text",
    [
        "mailto:", "mailto:me", "mailto:-me@site.org", "mailto:me@site.org?bcc=all@site.org", "mailto:me@-site.org",
        "mailto:me@site.org\nBcc: x@y", "mailto:me@site.org,", "mailto:me@a..b", "mailto:|sh@site.org", "mailto:<a@b>",
    ],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs addresses such as"):
        read_addresses(text)


@pytest.mark.skipif(
    any(Path(place, "sendmail").exists() for place in ("/usr/sbin", "/usr/lib", "/sbin")), reason="there is a mailer"
)
def test_a_machine_without_a_mailer_is_told_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of sendmail, mail, mailx; install one"):
        open_mail("mailto:me@site.org", {"PATH": str(tmp_path)})


def test_a_submit_mails_many_failures_once_and_its_end(
    command: Command, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, weights = mailer(tmp_path), tmp_path / "weights"
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    shutil.copytree(command.weights, weights)
    poison_file(weights / "demo.safetensors")
    flags = ("--notify", "mailto:me@site.org", "--notify-failure-rate", "90%", "--max-attempts", "1")
    spoilt, output = replace(command, weights=weights), tmp_path / "out"
    source = manifest(10, num_steps=[1] * 10)
    assert spoilt.submit(source, output, *flags)[0] == 3
    first, last = told(program)
    assert first["Subject"].startswith("[pab-pipeline] failures: run ")
    assert "10 clips failed, 0 were rendered" in str(first.get_payload())
    assert last["Subject"].startswith("[pab-pipeline] end: run ")
    assert "exit code 3: 10 failed" in str(last.get_payload())
