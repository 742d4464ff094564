"""Submits of one run take turns, on every kind of store; a refused one leaves the output free."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.store.bucket import Bucket
from jobs.store.retry import RetryPolicy
from pipeline.exits import RefusedError
from pipeline.run.claims import claimed, driving
from pipeline.run.jobs_file import read_submits
from pipeline.screen import Screen
from tests.jobs.s3_with_faults import FaultyS3
from tests.pipeline.command import Command, jobs_held, records, wait_until
from tests.pipeline.conftest import SubmittedTwice

Manifest = Callable[..., Path]


@pytest.mark.parametrize("conditions", ["kept", "ignored"])
def test_of_many_submits_never_two_plan_at_once(faulty_s3: FaultyS3, conditions: str) -> None:
    faulty_s3.conditions = conditions
    inside, most, lock = 0, 0, threading.Lock()

    def plan(_: int) -> None:
        nonlocal inside, most
        with claimed(Bucket("s3://runs/out", retry_policy=RetryPolicy(total_s=5)), Screen(as_json=True)):
            with lock:
                inside, most = inside + 1, max(most, inside + 1)
            time.sleep(0.05)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(plan, range(3)))
    assert most == 1
    assert faulty_s3.objects == {}


def test_the_claim_of_a_process_that_is_gone_is_removed(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    bucket = Bucket(str(tmp_path))
    claim_of(bucket, pid=int(gone.stdout))
    with claimed(bucket, Screen()):
        assert len(list(bucket.names("claims"))) == 1
    assert list(bucket.names("claims")) == []


def test_a_claim_that_is_renewed_no_more_is_removed_after_a_time(tmp_path: Path) -> None:
    bucket = Bucket(str(tmp_path))
    claim_of(bucket, host="another-machine")
    with pytest.raises(RefusedError, match="process 1 on another-machine"), claimed(bucket, Screen(), patience_s=0):
        pass
    start = time.monotonic()
    with claimed(bucket, Screen(), dead_s=0.5):
        assert time.monotonic() - start > 0.5


def test_a_damaged_claim_stops_nobody_for_good(tmp_path: Path) -> None:
    bucket = Bucket(str(tmp_path))
    bucket.write("claims/submit-1.json", b"")
    with claimed(bucket, Screen(), dead_s=0.2):
        pass


def claim_of(bucket: Bucket, *, host: str | None = None, pid: int = 1) -> None:
    import socket

    facts = {"host": host or socket.gethostname(), "pid": pid, "beat": 0}
    bucket.write("claims/submit-1.json", json.dumps(facts).encode())


def test_two_manifests_at_once_never_share_an_output_where_the_store_creates_nothing_exclusively(
    faulty_s3: FaultyS3, cold_command: Command, manifest: Manifest
) -> None:
    faulty_s3.conditions = "ignored"
    first, second = manifest(2, name="first"), manifest(2, name="second", seed=[7, 8])
    drivers = [cold_command.start(each, "s3://runs/out", "--no-baseline") for each in (first, second)]
    said = [driver.communicate(timeout=240) for driver in drivers]
    codes = [driver.returncode for driver in drivers]
    assert sorted(codes) == [0, 2], said
    refused = said[codes.index(2)][1]
    assert "holds another run: the manifest has other rows" in refused
    assert "the store writes over what exists" in said[codes.index(0)][1]
    bucket = Bucket("s3://runs/out")
    assert {bucket.record(key)["job"]["run_id"] for key in bucket.recorded_keys()} == {
        bucket.read_json("run.json")["run_id"]
    }
    assert len(bucket.recorded_keys()) == 2


def test_a_listing_that_is_a_minute_late_hides_no_rendered_clip(
    faulty_s3: FaultyS3, command: Command, manifest: Manifest
) -> None:
    faulty_s3.late_listing_s = 60
    ran = command.run(*command.submit_words(manifest(2), Path("s3://runs/out")))
    assert ran.returncode == 0, ran.stderr
    assert "2 of 2 clips rendered" in ran.stdout
    assert "given up" not in ran.stderr


def test_a_refused_submit_does_not_claim_the_output(command: Command, manifest: Manifest, tmp_path: Path) -> None:
    output, url = tmp_path / "out", manifest(2)
    code, document = command.submit(url, output, "--cluster", "slurm", "--slurm", "no-such-option=1")
    assert code in (2, 5), document
    assert not (output / "run.json").exists()
    code, document = command.submit(url, output, "--precision", "bfloat16")
    assert (code, document["rendered"]) == (0, 2)


def test_a_killed_submit_leaves_no_claim_that_lasts(cold_command: Command, manifest: Manifest, tmp_path: Path) -> None:
    output, url = tmp_path / "out", manifest(2, num_steps=[60] * 2)
    driver = cold_command.start(url, output)
    wait_until((output / "claims").exists, "the claim")
    driver.kill()
    driver.communicate()
    code, document = cold_command.submit(url, output)
    assert (code, document["rendered"]) == (0, 2)


def test_a_submit_beside_one_that_dies_renders_what_that_one_leaves(
    cold_command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    output, url = tmp_path / "out", manifest(6, num_steps=[60] * 6)
    first = cold_command.start(url, output, "--broadcast", "none")
    wait_until(lambda: records(output), "a first record")
    with jobs_held(first):
        second = cold_command.start(url, output, "--broadcast", "none")
        said = ""
        assert second.stderr is not None
        while "this submit waits for" not in said:
            said += (line := second.stderr.readline())
            assert line, said
    first.kill()
    first.communicate()
    _, rest = second.communicate(timeout=240)
    assert second.returncode == 0, said + rest
    assert "left to another submit that is at work: process" in said
    assert len(records(output)) == 6


def test_a_driver_that_lives_on_after_its_last_clip_is_not_waited_for(
    command: Command, submitted_twice: SubmittedTwice, tmp_path: Path
) -> None:
    output = shutil.copytree(submitted_twice.output, tmp_path / "out")
    bucket = Bucket(str(output))
    submit = next(read_submits(bucket))
    assert submit.jobs
    with driving(bucket, submit.submit_id):
        code, document = command.submit(submitted_twice.manifest, output)
    assert (code, document["rendered"]) == (0, 3)
