"""A tiny manifest and untrained weights of the demo model: real runs in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pab.families.demo.config import DEPTH
from pab.families.demo.weights import build_parts, demo_config, save_demo
from tests.pipeline.command import Command

Manifest = Callable[..., Path]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    config = demo_config(small=True)
    config = replace(config, transformer=replace(config.transformer, depth=DEPTH))
    save_demo(build_parts(config), folder / "demo.safetensors")
    return folder


@pytest.fixture
def command(tmp_path: Path, weights: Path) -> Command:
    folder = tmp_path / "work"
    folder.mkdir()
    return Command(folder=folder, weights=weights, in_process=True)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Writes a manifest of small clips c0, c1, ...; columns may be given as keywords."""

    def write(num_clips: int = 3, *, name: str = "tiny", **columns: list[object]) -> Path:
        rows: dict[str, list[object]] = {
            "clip_id": [f"c{i}" for i in range(num_clips)],
            "prompt": [f"a red circle moving left number {i}" for i in range(num_clips)],
            "num_frames": [8] * num_clips,
            "height": [32] * num_clips,
            "width": [32] * num_clips,
            "num_steps": [4] * num_clips,
        }
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(rows | columns), path)
        return path

    return write
