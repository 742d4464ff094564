"""`cancel` ends what this machine knows of the run; nothing that a bucket says leads it to a folder, a process or a job."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_driver import NOTE, note_driver, stop_drivers
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from pipeline.commands import cancel
from pipeline.commands.retry import keep_failures
from pipeline.exits import RefusedError, UsageError
from pipeline.run.jobs_file import attempts_allowed, new_submit, read_submits
from pipeline.run.machines import check_claim, claim_folder, work_folder
from pipeline.run.run import FORMAT, open_bucket
from pipeline.screen import Screen

RUN_ID = "0123456789ab"


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output whose run.json names a run; the working folder is its parent."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "out", RUN_ID)
    return tmp_path / "out"


def write_run(output: Path, run_id: object) -> None:
    output.mkdir(exist_ok=True)
    run = {"format": FORMAT, "run_id": run_id, "manifest_digest": "d", "num_clips": 1, "pixels": {}, "weights": {}}
    (output / layout.RUN).write_text(json.dumps(run))


def ended(output: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[object]]:
    cancel.run(argparse.Namespace(output=str(output)), Screen(as_json=True))
    document: dict[str, list[object]] = json.loads(capsys.readouterr().out)
    return document


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody's process whose command line looks like a driver's."""
    words = [sys.executable, "-c", "import time; time.sleep(60)", "pipeline", "submit"]
    process = subprocess.Popen(words)
    yield process
    process.kill()
    process.wait()


def test_no_process_or_folder_that_the_bucket_names_is_touched(
    output: Path, tmp_path: Path, stranger: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o755)
    bucket = open_bucket(str(output))
    document = {"submit_id": "1", "host": socket.gethostname(), "pid": stranger.pid, "started": "", "jobs": []}
    for number, kind in enumerate(("local", "slurm")):
        entry = document | {"submit_id": str(number), "cluster": kind, "folder": str(precious)}
        bucket.write_json(f"logs/jobs-{number}.json", entry)
    with pytest.raises(RefusedError, match=re.escape(f"{work_folder(RUN_ID)} is not here")):
        ended(output, capsys)
    assert stranger.poll() is None
    assert precious.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "run_id", ["../../precious", "/tmp", "..", "", "0123456789AB", "0123456789ab\n", "g" * 12, 7, 123456789012]
)
def test_a_run_id_that_is_none_leads_to_no_folder(
    output: Path, run_id: object, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(output, run_id)
    with pytest.raises((UsageError, BucketError), match=r"run_id=.* needs 12"):
        ended(output, capsys)
    with pytest.raises(UsageError, match=r"run_id=.* needs 12 to 64 of 0-9 and a-f"):
        work_folder(run_id)


def test_another_runs_id_in_a_bucket_ends_nothing_of_that_run(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = work_folder(RUN_ID)
    folder.mkdir(parents=True)
    claim_folder(folder, str(output))
    claim_folder(folder, str(tmp_path / "evil"))
    check_claim(folder, str(output))
    write_run(tmp_path / "evil", RUN_ID)
    with pytest.raises(RefusedError, match=r"names a run that this machine knows as the one in .*/out, so nothing is"):
        ended(tmp_path / "evil", capsys)
    # A run that was moved takes its folder with it.
    output.rename(tmp_path / "moved")
    claim_folder(folder, str(tmp_path / "moved"))
    check_claim(folder, str(tmp_path / "moved"))
    # A damaged note says nothing.
    (folder / "output.json").write_bytes(b"")
    check_claim(folder, str(tmp_path / "evil"))


def test_a_run_is_the_same_however_its_place_is_spelled(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(output)
    folder = work_folder(RUN_ID)
    folder.mkdir(parents=True)
    spellings = ["link", "./link/../out/", str(output), f"file://{output}", f"file://{tmp_path}/link"]
    for claimed in spellings:
        (folder / "output.json").unlink(missing_ok=True)
        claim_folder(folder, open_bucket(claimed).url)
        for spelled in spellings:
            cancel.run(argparse.Namespace(output=spelled), Screen(as_json=True))
            assert json.loads(capsys.readouterr().out)["drivers_stopped"] == []
        write_run(tmp_path / "copy", RUN_ID)
        for spelled in ("copy", f"file://{tmp_path}/copy"):
            with pytest.raises(RefusedError, match="so nothing is cancelled"):
                cancel.run(argparse.Namespace(output=spelled), Screen(as_json=True))
    # The claim is of the place, wherever the link leads by now.
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    with pytest.raises(RefusedError, match="so nothing is cancelled"):
        cancel.run(argparse.Namespace(output="link"), Screen(as_json=True))
    (folder / "output.json").write_text(json.dumps({"output": "s3://videos/a"}))
    for same in ("s3://videos/a", "s3a://videos/a", "s3://videos/a/"):
        check_claim(folder, same)
    for other in ("s3://videos/a/../a", "s3://videos//a", "gs://videos/a", str(output)):
        with pytest.raises(RefusedError, match="the one in s3://videos/a,"):
            check_claim(folder, other)


def driving(folder: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys, time, pathlib; from cluster.local_driver import note_driver; note_driver(pathlib.Path(sys.argv[1]));"
        " print('noted', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"noted\n"
    return process


def test_the_driver_that_this_machine_knows_is_stopped_and_no_other_process_under_its_id(
    output: Path, stranger: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = work_folder(RUN_ID) / "local-1"
    folder.mkdir(parents=True)
    driver = driving(folder)
    note = json.loads((folder / NOTE).read_text())
    for change in ({"pid": stranger.pid}, {"started": note["started"] - 1}, {"boot": "other"}, {"command": ["other"]}):
        (folder / NOTE).write_text(json.dumps(note | change))
        assert stop_drivers(folder.parent) == []
    for damage in ("", "[]", '{"pid": "x"}', '{"pid": 99999999999999999999}'):
        (folder / NOTE).write_text(damage)
        assert stop_drivers(folder.parent) == []
    (folder / NOTE).write_text(json.dumps(note))
    assert ended(output, capsys)["drivers_stopped"] == [driver.pid]
    assert driver.wait(10) == -15
    assert ended(output, capsys)["drivers_stopped"] == []
    assert stranger.poll() is None
    assert driver.stdout
    driver.stdout.close()


def test_a_link_or_another_users_folder_says_nothing_of_drivers(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    note_driver(theirs)
    (tmp_path / "local-1").symlink_to(theirs)
    assert stop_drivers(tmp_path) == []
    if os.geteuid() == 0:
        (tmp_path / "local-1").unlink()
        theirs.rename(tmp_path / "local-2")
        os.chown(tmp_path / "local-2", 65534, 65534)
        assert stop_drivers(tmp_path) == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"jobs": [[1]]}'])
def test_a_damaged_jobs_file_ends_neither_status_nor_cancel(
    output: Path, data: bytes, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bucket = open_bucket(str(output))
    new_submit("local", "work", max_attempts=5).write(bucket)
    bucket.write("logs/jobs-99999999.json", data)
    assert [submit.max_attempts for submit in read_submits(bucket)] == [5]
    assert attempts_allowed(bucket) == 5
    assert ended(output, capsys)["cancelled"] == []
    assert "logs/jobs-99999999.json is damaged and counts as absent" in caplog.text


class RetriedMeanwhile(Bucket):
    """A bucket in which another `retry` takes every failure away just before it is read."""

    def read(self, path: str) -> bytes:
        if path.startswith("failures/"):
            self.remove(path)
        return super().read(path)


def test_two_retries_at_once_meet_without_an_error_and_a_damaged_failure_is_kept_too(tmp_path: Path) -> None:
    for bucket in (RetriedMeanwhile(str(tmp_path)), Bucket(str(tmp_path))):
        bucket.write(layout.failure("c0.0a", 1), b'{"failed_at": "2026-11-26"}')
        bucket.write(layout.failure("c1.0a", 1), b"")
        keep_failures(bucket, {"c0.0a", "c1.0a"})
        bucket.forget_failures({"c0.0a", "c1.0a"})
        assert bucket.failures() == {}
    assert sorted(path.name for path in (tmp_path / "history").iterdir()) == [
        "c0.0a.1.20261126.json",
        "c1.0a.1.damaged.json",
    ]
