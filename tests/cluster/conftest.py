"""Real daemons for the tests marked `cluster`: one SLURM and one S3 server per test session, in throw-away folders."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.daemons.ceph import Ceph, S3Server
from tests.cluster.daemons.slurm import Slurm


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the name of a Unix socket, which pytest's own may not."""
    folder = Path(tempfile.mkdtemp(prefix="pab-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm_daemons() -> Iterator[Slurm]:
    """A private SLURM of four nodes with four fake GPUs each."""
    with _short_folder() as folder:
        slurm = Slurm(folder)
        slurm.start()
        try:
            yield slurm
        finally:
            slurm.stop()


@pytest.fixture
def slurm(slurm_daemons: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The private SLURM, empty, found by every client command of the test."""
    monkeypatch.setenv("SLURM_CONF", slurm_daemons.environment["SLURM_CONF"])
    slurm_daemons.wait_idle(timeout_s=60)
    yield slurm_daemons
    slurm_daemons.end_jobs()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A private S3 server."""
    with _short_folder() as folder:
        ceph = Ceph(folder)
        server = ceph.start()
        try:
            yield server
        finally:
            ceph.stop()
