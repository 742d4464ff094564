"""What is killed or interrupted in the middle of a run is made good by the next submit, or by the run itself."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.waiting import is_alive
from tests.pipeline.command import (
    Command,
    assert_whole,
    children,
    end,
    group_processes,
    records,
    wait_until,
)
from tests.pipeline.conftest import SubmittedTwice

Manifest = Callable[..., Path]
CLIPS = ["c0", "c1", "c2", "c3"]
SLOW = {"num_steps": [60] * 4}


def first_record(output: Path) -> None:
    wait_until(lambda: records(output), "the first record")


def ranks(output: Path) -> list[int]:
    return [rank for group in group_processes(output) for rank in children(group)]


def test_a_driver_killed_in_the_middle_leaves_a_run_that_the_next_submit_finishes(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    output, url = tmp_path / "out", manifest(4, **SLOW)
    driver = command.start(url, output)
    first_record(output)
    processes = [*group_processes(output), *ranks(output)]
    assert end(driver, signal.SIGKILL)[0] == -signal.SIGKILL
    wait_until(lambda: not any(is_alive(pid) for pid in processes), "the local job ends with its driver", 20)
    before = {name: record["recorded_at"] for name, record in records(output).items()}
    assert 1 <= len(before) < 4
    code, document = command.submit(url, output)
    assert (code, document["recorded_before"]) == (0, len(before))
    assert_whole(output, CLIPS)
    after = {name: record["recorded_at"] for name, record in records(output).items()}
    assert {name: after[name] for name in before} == before


def test_a_job_whose_rank_is_killed_is_started_again(command: Command, manifest: Manifest, tmp_path: Path) -> None:
    output, url = tmp_path / "out", manifest(4, **SLOW)
    driver = command.start(url, output, "--gpus-per-node", "2", "--mesh", "cfg=2")
    first_record(output)
    os.kill(ranks(output)[1], signal.SIGKILL)
    _, stderr = driver.communicate(timeout=240)
    assert driver.returncode == 0
    assert "job-00000: started again" in stderr
    assert "was killed by SIGKILL" in stderr
    assert_whole(output, CLIPS)
    assert len(group_processes(output)) == 2
    # The branches of guidance share nothing inside of a pass.
    assert {(one["job"]["ranks"], one["counted"]["all_to_alls"]) for one in records(output).values()} == {(2, 0)}


def test_a_run_goes_on_when_dask_is_killed_and_the_driver_starts_it_again(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    output, url = tmp_path / "out", manifest(4, **SLOW)
    words = [word for word in command.submit_words(url, output) if word != "--no-dask"]
    driver = command.start_words(words)
    first_record(output)
    jobs = set(group_processes(output))
    (dask,) = set(children(driver.pid)) - jobs
    os.kill(dask, signal.SIGKILL)
    _, stderr = driver.communicate(timeout=240)
    assert driver.returncode == 0
    assert "ssh -N -L" in stderr
    assert stderr.count("the dashboard had died and is started again") == 1
    assert_whole(output, CLIPS)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_ends_its_local_jobs_and_takes_no_attempt_from_the_clips(
    command: Command, manifest: Manifest, tmp_path: Path, signum: signal.Signals
) -> None:
    output, url = tmp_path / "out", manifest(4, **SLOW)
    driver = command.start(url, output)
    first_record(output)
    processes = [*group_processes(output), *ranks(output)]
    began = time.monotonic()
    driver.send_signal(signum)
    time.sleep(0.2)
    code, _, stderr = end(driver, signum)  # `timeout` and `make` both pass a signal on: two arrive
    assert code == 130
    assert time.monotonic() - began < 15
    assert "submit again to go on" in stderr
    assert not any(is_alive(pid) for pid in processes)
    assert len(list((output / "attempts").iterdir())) == len(records(output)) < 4
    assert command.submit(url, output)[0] == 0
    assert_whole(output, CLIPS)


def test_a_background_submit_that_ends_while_its_ranks_start_takes_no_attempt_from_the_clips(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    output, url = tmp_path / "out", manifest(1, num_steps=[100])
    for _ in range(2):
        driver = command.start(url, output, "--gpus-per-node", "2", "--mesh", "cfg=2", in_background=True)
        wait_until(lambda: len(ranks(output)) == 2, "both ranks")
        processes = ranks(output)
        code, _, stderr = end(driver, signal.SIGTERM)
        assert (code, "submit again to go on" in stderr) == (130, True)
        assert not any(is_alive(pid) for pid in processes)
        assert not list((output / "attempts").glob("*"))


def test_cancel_ends_a_local_run(command: Command, manifest: Manifest, tmp_path: Path) -> None:
    output, url = tmp_path / "out", manifest(4, **SLOW)
    driver = command.start(url, output)
    first_record(output)
    code, document = command.json("cancel", output)
    assert (code, document["drivers_stopped"]) == (0, [driver.pid])
    driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert command.json("cancel", output)[1]["drivers_stopped"] == []


def test_a_clip_that_kills_its_job_twice_is_quarantined_and_the_others_are_rendered(
    command: Command, submitted_twice: SubmittedTwice, tmp_path: Path
) -> None:
    # Two starts that died with the clip: what a clip leaves that takes its job along.
    output, url = tmp_path / "out", submitted_twice.manifest
    shutil.copytree(submitted_twice.output, output)
    key = next((output / "records").glob("c1.*")).name.removesuffix(".json")
    (output / "records" / f"{key}.json").unlink()
    for attempt in (1, 2):
        (output / "attempts" / f"{key}.{attempt}").write_text("{}")
    code, document = command.submit(url, output)
    assert (code, document["rendered"], document["quarantined"], document["rendered_now"]) == (3, 2, 1, 0)
    code, status = command.json("status", output)
    assert (code, status["quarantined"], status["failures"]) == (3, 1, document["failures"])
    (told,) = status["failures"]
    assert (told["clip_id"], told["stage"], told["error"]) == ("c1", "quarantine", "GroupKilledError")
    assert command.run("retry", output).returncode == 0
    code, document = command.submit(url, output)
    assert (code, document["rendered_now"]) == (0, 1)
    assert_whole(output, ["c0", "c1", "c2"])
