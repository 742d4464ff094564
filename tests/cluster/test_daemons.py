"""A developer's own SLURM and S3 server, next to those of the tests."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.daemons.processes import DaemonError, free_ports, need_programs
from tests.cluster.daemons.slurm import Slurm
from tests.cluster.waiting import is_alive


@pytest.fixture
def root() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pab-"))
    folder.chmod(0o755)  # munged wants its socket to be reachable for all
    yield folder
    shutil.rmtree(folder)


def daemons(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.cluster.daemons", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.cluster
def test_a_developers_daemons_outlive_the_command_and_stop_whole(slurm_daemons: Slurm, root: Path) -> None:
    started = daemons("start", root)
    assert started.returncode == 0, started.stderr
    try:
        assert "in use" not in started.stderr
        assert (root / "env.sh").read_text() == started.stdout
        answer = subprocess.run(
            ["bash", "-c", f". {root}/env.sh && srun -N2 hostname && curl -s $AWS_ENDPOINT_URL || exit 3"],
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert len(answer.stdout.split()) >= 2, answer.stderr
        assert slurm_daemons.run("squeue", "--noheader") == ""
        again = daemons("start", root)
        assert again.returncode == 1
        assert "holds daemons already; stop them first" in again.stderr
        own = Slurm(root / "slurm").daemons
        pids = [own.pid(name) for name in own.names()]
        assert len(pids) == 8
        assert all(map(is_alive, pids))
    finally:
        stopped = daemons("stop", root)
    assert stopped.returncode == 0, stopped.stderr
    assert not any(map(is_alive, pids))
    assert list(root.iterdir()) == []


def test_stopping_where_nothing_runs_says_so(root: Path) -> None:
    stopped = daemons("stop", root)
    assert (stopped.returncode, stopped.stdout) == (1, "")
    assert "holds no daemons" in stopped.stderr


def test_missing_programs_are_named_with_the_cure() -> None:
    with pytest.raises(DaemonError, match=r"not installed: no-such-daemon; run \.ci/install-cluster-packages as root"):
        need_programs(["sh", "no-such-daemon"])


def test_ports_that_were_given_are_given_to_nobody_else() -> None:
    """Nothing listens at them yet: two clusters that start at once could have the same ones, and one would not come up."""
    first = random.randrange(14_000, 16_900, 60)  # at random: these tests may run twice at once
    blocks = range(first, first + 60, 20)
    mine = {free_ports(7, blocks) for _ in blocks}
    assert mine == set(blocks)
    ask = f"from tests.cluster.daemons.processes import free_ports; free_ports(7, {blocks})"
    other = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    assert "DaemonError: no block of loopback ports is free" in other.stderr
