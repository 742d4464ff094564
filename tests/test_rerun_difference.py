"""What the comparison of a clip with itself, rendered again, finds and says."""

from __future__ import annotations

import numpy as np

from benchmarks.rerun_difference import compared, difference, table


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
