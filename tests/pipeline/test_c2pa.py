"""`submit --c2pa` and `verify`, with the real C2PA library: a run of signed videos, what is refused, what is told."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.render_settings import RenderSettings
from pipeline.exits import Exit, UsageError
from pipeline.run.signing import try_signing
from tests.jobs.certificates import SERVER, make_pair
from tests.pipeline.command import Command, assert_whole, records
from tests.pipeline.conftest import write_manifest
from tests.pipeline.test_settings import settings_of

LOCAL = ("--cluster", "local", "--device", "cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Command, Path]:
    """A run of two clips whose videos are signed for tries; who changes it takes a copy."""
    folder = tmp_path_factory.mktemp("signed")
    command = Command(folder=folder, weights=weights, in_process=True)
    code, _ = command.submit(write_manifest(folder, 2), folder / "out", "--c2pa", "--c2pa-prompt", "text")
    assert code == Exit.OK
    return command, folder / "out"


def test_a_signed_run_is_whole_and_verify_reads_every_copy(signed: tuple[Command, Path], tmp_path: Path) -> None:
    command, output = signed
    assert_whole(output, ["c0", "c1"])
    assert command.json("status", output, "--check")[1]["damaged"] == []
    told = "signed     2 of 2 videos by a C2PA manifest; 2 of them with a certificate for tries, which readers do not trust"
    assert told in command.run("status", output).stdout
    assert json.loads((output / "reports/run.json").read_text())["c2pa"] == {"tries": 2}
    assert "signed (C2PA), some for tries" in (output / "reports/run.html").read_text()
    assert pq.read_table(output / "reports/index.parquet").column("c2pa").to_pylist() == ["tries"] * 2
    assert command.run("export", output, tmp_path / "set", "--format", "csv").returncode == 0
    record = records(output)["c0"]
    for video in (output / "videos/c0.mp4", output / record["video"]["path"], tmp_path / "set/videos/c0.mp4"):
        code, told = command.json("verify", video)
        assert (code, told["manifest"]["verdict"]) == (Exit.OK, "valid")
        assert told["manifest"]["manifest"] == record["video"]["c2pa"]["manifest"]
        assert told["manifest"]["clip"]["prompt"] == "a red circle moving left number 0"
        in_run = video.is_relative_to(output)
        assert told["record"] == (
            {"record": f"records/c0.{record['digest']}.json", "differences": []} if in_run else None
        )
    assert command.json("verify", output, "--clip", "c1")[1]["manifest"]["clip"]["clip_id"] == "c1"
    shown = command.run("verify", output / "videos/c0.mp4").stdout
    assert "holds: the video is as it was signed. Nobody vouches for the signer here" in shown
    assert "issuer: pab-pipeline tries, trusted by nobody" in shown
    assert "prompt: a red circle moving left number 0" in shown
    (certificate,) = (command.folder / "runs/.jobs").glob("*/c2pa/c2pa-certificate.pem")
    code, told = command.json("verify", output / "videos/c0.mp4", "--trust", certificate)
    assert (code, told["manifest"]["verdict"]) == (Exit.OK, "trusted")


def test_the_key_is_in_its_own_file_alone(signed: tuple[Command, Path]) -> None:
    command, _ = signed
    (key,) = (command.folder / "runs/.jobs").glob("*/c2pa/c2pa-key.pem")
    lines = [line.encode() for line in key.read_text().splitlines() if "-----" not in line]
    secret = base64.b64decode(b"".join(lines))
    # The secret number itself, wherever in its file it stands, and in the forms that text could have it.
    forms = [secret[36:60], base64.b64encode(secret[36:60])[:-4], secret[36:60].hex().encode(), lines[0]]
    holding = [path for path in files_below(command.folder) if any(form in path.read_bytes() for form in forms)]
    assert holding == [key]


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_verify_tells_changed_stripped_and_unsigned_videos_apart(
    signed: tuple[Command, Path], submitted_twice, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    command, output = signed
    record = records(output)["c0"]
    copy = tmp_path / "out"
    shutil.copytree(output, copy)
    video = copy / record["video"]["path"]
    changed = bytearray(video.read_bytes())
    changed[-10] ^= 1
    video.unlink()  # its plain name is a link to it
    video.write_bytes(changed)
    ran = command.run("verify", video)
    assert ran.returncode == Exit.NOT_AS_SIGNED
    assert "DOES NOT HOLD: the video is not what was signed" in ran.stdout
    assert "DOES NOT AGREE" in ran.stdout
    assert "its bytes are not those that were recorded" in ran.stdout
    plain = submitted_twice.output / "videos/c0.mp4"
    assert command.run("verify", plain).returncode == Exit.NO_MANIFEST
    shutil.copy(plain, video)
    code, told = command.json("verify", video)
    assert code == Exit.NO_MANIFEST
    assert told["manifest"] is None
    assert told["record"]["differences"][-1].startswith("the record says that it was signed")
    # A video of another clip, signed as well as this one, under this one's name.
    shutil.copy(output / "videos/c1.mp4", copy / "videos/c0.mp4")
    code, told = command.json("verify", copy / "videos/c0.mp4")
    assert (code, told["manifest"]["verdict"]) == (Exit.NOT_AS_SIGNED, "valid")
    assert [each.partition(" (")[0] for each in told["record"]["differences"]][:2] == [
        "its bytes are not those that were recorded", "it carries another manifest than the record says",
    ]  # fmt: skip
    ran = command.run("verify", output / "videos/c0.mp4", "--trust", pair[0])
    assert (ran.returncode, "NOT TRUSTED" in ran.stdout) == (Exit.NOT_AS_SIGNED, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.mp4"], "is not there; name a video, or a run with --clip ID"),
        (["."], "is a folder; name a video"),
        (["OUT", "--clip", "c9"], "--clip c9: no such clip is rendered in "),
        (["OUT", "--clip", "c0", "--trust", "none.pem"], "--trust none.pem: No such file"),
        (["OUT", "--clip", "c0", "--trust", "OUT/run.json"], "needs a PEM file of them"),
    ],
)
def test_verify_names_what_is_wrong_with_its_words(
    signed: tuple[Command, Path], words: list[str], message: str
) -> None:
    command, output = signed
    ran = command.run("verify", *(word.replace("OUT", str(output)) for word in words))
    assert ran.returncode == Exit.USAGE
    assert message in ran.stderr


@pytest.mark.parametrize("data", [b"", b"a text\n", bytes(100)], ids=["empty", "text", "zeros"])
def test_a_file_that_is_no_video_is_told_so(command: Command, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    ran = command.run("verify", tmp_path / "a.mp4")
    assert ran.returncode == Exit.NO_MANIFEST
    assert "is no mp4 video, and carries no C2PA manifest" in ran.stdout


def test_a_signer_whose_name_has_control_characters_moves_no_cursor(command: Command) -> None:
    ended = Path(__file__).parents[1] / "data/signed_by_an_ended_certificate.mp4"
    ran = command.run("verify", ended)
    assert ran.returncode == Exit.NOT_AS_SIGNED
    assert "does not hold any more: the certificate has expired" in ran.stdout
    assert "common_name: Studio \\x1b[31m" in ran.stdout
    assert "\x1b" not in ran.stdout


def test_a_later_submit_without_c2pa_is_warned(signed: tuple[Command, Path]) -> None:
    command, output = signed
    ran = command.run(*command.submit_words(command.folder / "tiny.parquet", output, "--dry-run"))
    assert ran.returncode == Exit.OK
    assert "warning: this run began with --c2pa, and this submit does not say it" in ran.stderr


def test_a_run_that_began_without_is_told_what_it_has(submitted_twice, command: Command) -> None:
    words = command.submit_words(submitted_twice.manifest, submitted_twice.output, "--dry-run", "--c2pa")
    words[words.index("--weights") + 1] = str(command.weights)
    ran = command.run(*words)
    assert ran.returncode == 0
    assert f'rerender {submitted_twice.output} --where "c2pa = none"' in ran.stderr
    assert "warning: videos are signed with a certificate made for tries" in ran.stderr
    index = pq.read_table(submitted_twice.output / "reports/index.parquet")
    assert index.column("c2pa").to_pylist() == ["none"] * 3
    assert "signed" not in command.run("status", submitted_twice.output).stdout


def test_signing_changes_no_digest_and_run_json_has_only_the_path_of_the_key(
    signed: tuple[Command, Path], submitted_twice, pair: tuple[Path, Path]
) -> None:
    plain, (_, output) = records(submitted_twice.output), signed
    assert {name: record["digest"] for name, record in records(output).items()} == {
        name: plain[name]["digest"] for name in ("c0", "c1")
    }
    assert json.loads((output / "run.json").read_text())["c2pa"] is True
    settings = settings_of(*LOCAL, "--c2pa", "--c2pa-cert", str(pair[0]), "--c2pa-key", str(pair[1]))
    document = json.dumps(settings.to_dict())
    assert str(pair[1]) in document
    assert "PRIVATE" not in document


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--c2pa-cert", "a"], "--c2pa-cert is of signing videos, and --c2pa is not given"),
        (["--c2pa-prompt", "text"], "--c2pa-prompt is of signing videos, and --c2pa is not given"),
        (["--c2pa", "--c2pa-cert", "a"], "--c2pa-cert needs --c2pa-key too"),
        (["--c2pa", "--c2pa-key", "a"], "--c2pa-key needs --c2pa-cert too"),
        (["--c2pa", "--c2pa-cert", "s3://b/a", "--c2pa-key", "a"], "--c2pa-cert='s3://b/a' is a URL"),
        (["--c2pa", "--c2pa-prompt", "none"], "argument --c2pa-prompt: invalid choice: 'none'"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError) as told:
        settings_of(*LOCAL, *flags)
    assert message in str(told.value)


def test_a_key_given_in_place_of_its_path_is_not_said_again(pair: tuple[Path, Path]) -> None:
    secret = pair[1].read_text()
    with pytest.raises(UsageError, match="holds a certificate or key itself; give the path of its file") as told:
        settings_of(*LOCAL, "--c2pa", "--c2pa-cert", str(pair[0]), "--c2pa-key", secret)
    assert secret.splitlines()[1] not in str(told.value)


def test_submit_tries_what_signs_before_it_plans(pair: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    certificate, key = pair
    asked = replace(settings_of(*LOCAL).render, c2pa=True)

    def tried(paths: tuple[Path, Path]) -> list[str]:
        return try_signing(replace(asked, c2pa_cert=str(paths[0]), c2pa_key=str(paths[1])))

    assert tried(pair) == []
    assert [told[:40] for told in try_signing(asked)] == ["videos are signed with a certificate mad"]
    assert try_signing(replace(asked, c2pa=False)) == []
    for paths, message in (
        ((certificate, make_pair(tmp_path, "other")[1]), "do not belong together"),
        (make_pair(tmp_path, "late", ends_h=-0.5), "has expired"),
        (make_pair(tmp_path, "server", usage=SERVER), "C2PA does not take this certificate"),
    ):
        with pytest.raises(UsageError, match=message):
            tried(paths)
    key.chmod(0o644)
    assert [told.partition(" can ")[0] for told in tried(pair)] == [f"key {key}"]
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(UsageError, match=r"--c2pa: C2PA manifests need .*pip install 'pab-pipeline\[c2pa\]'"):
        try_signing(asked)


def test_settings_of_before_sign_nothing() -> None:
    assert not RenderSettings(precision="float32", device="cpu").c2pa
