"""What the comparison of a clip with itself, rendered again, finds and says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.rerun_difference import DISTORT, compared, difference, main, table


def test_frames_are_told_apart_by_their_largest_and_mean_difference() -> None:
    frames = np.full((1, 2, 2, 3), 200, dtype=np.uint8)
    other = frames.copy()
    other[0, 0, 0] = [203, 200, 194]
    assert difference(frames, frames) == {"equal": True}
    assert difference(frames, other) == {"equal": False, "max": 6, "mean": 0.75, "psnr_db": 42.39, "values": 0.16667}


def test_every_way_is_compared_with_itself_with_eager_and_with_another_machine() -> None:
    frames = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    rows = compared({"eager": [frames] * 3, "sp2": [frames + 1, frames + 1, frames]}, {"sp2": frames + 1})
    assert [row["way"] for row in rows] == ["eager", "sp2"]
    assert "other machine" not in rows[0]
    assert rows[1]["again"] == rows[1]["other machine"] == {"equal": True}
    assert rows[1]["eager"]["max"] == rows[1]["other process"]["max"] == 1
    told = table(rows, "an H100")
    assert "| sp2 | equal bytes | max 1, mean 1.0000 of 255, 48.1 dB, 100.0% of values | max 1" in told
    assert "| against eager | an H100 |" in told


def test_the_second_process_has_empty_caches_of_its_own_and_timings_upside_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[dict[str, str]] = []

    def run(words: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        times = int(words[words.index("--times") + 1])
        np.save(words[-1], np.full((times, 1, 2, 2, 3), len(seen), dtype=np.uint8))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert main(["--ways", "compiled", "--out", str(tmp_path / "frames.npz")]) == 0
    (row,) = json.loads((tmp_path / "frames.json").read_text())["rows"]
    assert (row["again"]["equal"], row["other process"]["max"]) == (True, 1)
    assert [env[DISTORT] for env in seen] == ["", "inverse"]
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        first, second = (Path(env[name]) for env in seen)
        assert first != second
        assert not second.exists()
