"""The real command line, in this process or in one of its own, and what must be true of the run it leaves."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import imageio_ffmpeg
import psutil

from pipeline.__main__ import main
from pipeline.exits import Exit

ROOT = Path(__file__).parent.parent.parent
FAST = ("--cluster", "local", "--device", "cpu", "--no-dask", "--no-baseline")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Runs `python -m pipeline` in `folder`, with weights that every submit is given.

    `in_process`: calls `main` here, which saves the start of a process; for what needs no signal and no fresh imports.
    """

    folder: Path
    weights: Path
    in_process: bool = False

    def run(self, *words: str | Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        if self.in_process:
            return _called(list(map(str, words)), self.folder)
        command = [sys.executable, "-m", "pipeline", *map(str, words)]
        return subprocess.run(
            command, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def json(self, *words: str | Path, timeout_s: float = 240) -> tuple[int, dict[str, Any]]:
        """Runs with --json; stdout must be one JSON document and nothing else."""
        ran = self.run(*words, "--json", timeout_s=timeout_s)
        document: dict[str, Any] = json.loads(ran.stdout)
        return ran.returncode, document

    def submit_words(self, manifest: Path, output: Path, *flags: str) -> list[str]:
        return ["submit", str(manifest), "--output", str(output), "--weights", str(self.weights), *FAST, *flags]

    def submit(self, manifest: Path, output: Path, *flags: str) -> tuple[int, dict[str, Any]]:
        return self.json(*self.submit_words(manifest, output, *flags))

    def start(self, manifest: Path, output: Path, *flags: str, in_background: bool = False) -> subprocess.Popen[str]:
        return self.start_words(self.submit_words(manifest, output, *flags), in_background=in_background)

    def start_words(self, words: Sequence[str], *, in_background: bool = False) -> subprocess.Popen[str]:
        """`in_background`: with the signals that a script's shell gives to what it starts with `&`."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_ignore_ctrl_c if in_background else _heed_ctrl_c,  # noqa: PLW1509  (no thread of ours runs here)
        )


def _called(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    stdout, stderr = io.StringIO(), io.StringIO()
    kept = mock.patch.dict(os.environ, environment(), clear=True)
    with chdir(folder), kept, _no_log_handlers(), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = main(words)
        except SystemExit as ended:  # --help
            code = int(ended.code or 0)
    if code == Exit.INTERRUPTED:  # it was the tests that somebody interrupted
        raise KeyboardInterrupt
    return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())


@contextmanager
def _no_log_handlers() -> Iterator[None]:
    # Where a handler is, pytest's, the command line adds none of its own.
    root = logging.getLogger()
    kept, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = kept


def _heed_ctrl_c() -> None:
    # Tests that run in the background of a script inherit that SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ignore_ctrl_c() -> None:
    for signum in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAB_PIPELINE_")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)


@contextmanager
def jobs_held(driver: subprocess.Popen[str]) -> Iterator[None]:
    """Stops the jobs of a driver while inside: they are at work however long what is done meanwhile takes."""
    jobs = psutil.Process(driver.pid).children(recursive=True)
    assert jobs, "the driver has no job any more"
    for job in jobs:
        job.suspend()
    try:
        yield
    finally:
        for job in jobs:
            with suppress(psutil.NoSuchProcess):
                job.resume()


def records(output: Path) -> dict[str, dict[str, Any]]:
    """Records by clip id; a clip with two records of different digests would be there once, so they are counted too."""
    files = sorted((output / "records").glob("*.json")) if (output / "records").is_dir() else []
    found = {document["clip_id"]: document for document in (json.loads(file.read_text()) for file in files)}
    assert len(found) == len(files), "a clip has two records"
    return found


def assert_whole(output: Path, clip_ids: Sequence[str]) -> None:
    """Every clip has one record and one video that plays and is the one recorded; nothing else is there."""
    found = records(output)
    assert sorted(found) == sorted(clip_ids)
    assert sorted(path.name for path in (output / "videos").iterdir()) == sorted(f"{name}.mp4" for name in clip_ids)
    for record in found.values():
        video = output / record["video"]["path"]
        assert hashlib.sha256(video.read_bytes()).hexdigest() == record["video"]["sha256"]
        assert (output / f"videos/{record['clip_id']}.mp4").read_bytes() == video.read_bytes()
        assert num_frames(video) == record["clip"]["num_frames"]


def num_frames(video: Path) -> int:
    """Plays the video whole and counts its frames."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video), "-an", "-f", "framemd5", "-"]
    played = subprocess.run(command, capture_output=True, text=True, check=True)
    assert played.stderr == ""
    return sum(not line.startswith("#") for line in played.stdout.splitlines())


def group_processes(output: Path) -> list[int]:
    """Process ids of the local jobs that a run has started, from what it tells the bucket."""
    files = sorted((output / "logs").glob("jobs-*.json")) if (output / "logs").is_dir() else []
    return [int(job_id) for file in files for _, job_id in json.loads(file.read_text())["jobs"] if job_id]


def children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in tasks.split()]


def end(process: subprocess.Popen[str], signum: signal.Signals) -> tuple[int, str, str]:
    process.send_signal(signum)
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr
