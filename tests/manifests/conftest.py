from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import accept, validate
from manifests.errors import ManifestError
from manifests.rules import FamilyRules

Rules = dict[str, FamilyRules]
DEFAULTS = {
    "num_frames": 81,
    "height": 480,
    "width": 832,
    "fps": 16,
    "num_steps": 30,
    "guidance_scale": 5.0,
    "broadcast": "pab",
}


def family(name: str = "wan", *, identity: str = "weights-1", **defaults: int | float | str) -> FamilyRules:
    return FamilyRules(
        name=name,
        num_frames=range(5, 122, 4),
        height=range(32, 1025, 16),
        width=range(32, 1025, 16),
        fps=range(8, 31),
        num_steps=range(1, 101),
        guidance_scale=(0.0, 20.0),
        max_tokens=40_000,
        max_prompt_chars=200,
        broadcasts={"none": "0000", "pab": "abcd"},
        identity=lambda: identity,
        num_tokens=lambda num_frames, height, width: ((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16),
        defaults={**DEFAULTS, **defaults},
    )


@pytest.fixture
def rules() -> dict[str, FamilyRules]:
    return {"wan": family()}


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., str]:
    """Writes columns as a Parquet manifest and returns its path."""

    def write(columns: Mapping[str, Any] | pa.Table, **options: Any) -> str:
        path = tmp_path / "clips.parquet"
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(dict(columns)), path, **options)
        return str(path)

    return write


def accepted_rows(url: str, rules: Rules) -> list[dict[str, Any]]:
    sink = io.BytesIO()
    accept(url, rules, default_model="wan", sink=sink)
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(sink.getvalue())).to_pylist()
    return rows


def refused(url: str, rules: Rules, tmp_path: Path) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        validate(url, rules, default_model="wan", errors_path=tmp_path / "errors.jsonl")
    return caught.value
