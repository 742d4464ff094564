"""A few random faults in real runs on the real daemons; `make faults FAULTS=200 SEED=1` makes many."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.pipeline.command import ROOT, environment

pytestmark = pytest.mark.cluster


def test_a_few_random_faults_lose_nothing_and_leave_nothing_half_written() -> None:
    command = [sys.executable, "-m", "tests.faults", "--faults", "4", "--seed", "11"]
    runner = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said, _ = runner.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        runner.terminate()  # it stops its daemons on the way out
        said, _ = runner.communicate(timeout=60)
    assert runner.returncode == 0, said
    rows = {line[:52].strip(): line[52:].strip() for line in said.splitlines()}
    assert (rows["faults in all"], rows["clips lost"], rows["half-written"], rows["records changed"]) == ("4", *"000")
    assert int(rows["clips"]) == int(rows["recorded"]) + int(rows["failed, as they must"]) > 0
