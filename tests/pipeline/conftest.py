"""A tiny manifest and untrained weights of the demo model: real runs in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pab.families.demo.config import DEPTH
from pab.families.demo.weights import build_parts, demo_config, save_demo
from tests.jobs.s3_with_faults import faulty_s3
from tests.pipeline.command import Command

__all__ = ["faulty_s3"]

Manifest = Callable[..., Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedTwice:
    """A finished run of three clips. `first`, `second`: exit code and document of each submit.

    `run`: run.json after the first one; `modified`: when its videos were written.
    """

    manifest: Path
    output: Path
    first: tuple[int, dict[str, Any]]
    second: tuple[int, dict[str, Any]]
    run: dict[str, Any]
    modified: dict[Path, int]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    config = demo_config(small=True)
    config = replace(config, transformer=replace(config.transformer, depth=DEPTH))
    save_demo(build_parts(config), folder / "demo.safetensors")
    return folder


@pytest.fixture
def cold_command(tmp_path: Path, weights: Path) -> Command:
    """Each call in a process of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Command(folder=folder, weights=weights)


@pytest.fixture
def command(cold_command: Command) -> Command:
    """Each call in this process."""
    return replace(cold_command, in_process=True)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Writes a manifest of small clips c0, c1, ...; columns may be given as keywords."""
    return partial(write_manifest, tmp_path)


def write_manifest(folder: Path, num_clips: int = 3, *, name: str = "tiny", **columns: list[object]) -> Path:
    rows: dict[str, list[object]] = {
        "clip_id": [f"c{i}" for i in range(num_clips)],
        "prompt": [f"a red circle moving left number {i}" for i in range(num_clips)],
        "num_frames": [8] * num_clips,
        "height": [32] * num_clips,
        "width": [32] * num_clips,
        "num_steps": [4] * num_clips,
    }
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table(rows | columns), path)
    return path


@pytest.fixture(scope="session")
def submitted_twice(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> SubmittedTwice:
    """For tests that look at a run, or submit into it what changes nothing; who changes it takes a copy."""
    folder = tmp_path_factory.mktemp("submitted")
    command = Command(folder=folder, weights=weights, in_process=True)
    manifest, output = write_manifest(folder), folder / "out"
    first = command.submit(manifest, output, "--job-minutes", "30")
    run = json.loads((output / "run.json").read_text())
    modified = {path: path.stat().st_mtime_ns for path in (output / "videos").iterdir()}
    second = command.submit(manifest, output)
    return SubmittedTwice(manifest=manifest, output=output, first=first, second=second, run=run, modified=modified)
