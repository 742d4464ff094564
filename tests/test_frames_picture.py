"""The picture of frames with and without broadcast: what stands beside a row is of that very clip."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.frames_picture import MARGIN, PLANS, SCALE, Block, Row, render_block, row_words, sheet
from pab.families import FAMILIES
from pab.family import ClipRequest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def block() -> Block:
    request = ClipRequest(
        prompt="a red circle moving left on a navy background", negative_prompt=None, seed=1, num_frames=8, height=32,
        width=32, fps=8, num_steps=10, guidance_scale=4.0,
    )  # fmt: skip
    return render_block(FAMILIES["demo"], request, ("none", "pab246"))


def test_each_row_tells_the_operations_and_the_quality_of_its_clip(block: Block) -> None:
    whole, pab246 = block.rows
    assert block.title == "demo: a red circle moving left on a navy background"
    assert whole.words == "everything computed"
    told = re.fullmatch(r"pab246: (\d\.\d\d)x fewer operations, (\d+\.\d) dB", pab246.words)
    assert told
    assert float(told[1]) > 1
    assert 20 < float(told[2]) < 80
    assert row_words("half, the default", 1.0, math.inf) == "half, the default: 1.00x fewer operations, the same frames"
    assert not (pab246.frames == whole.frames).all()
    assert whole.frames.shape == (4, 32, 32, 3)


def test_every_frame_stands_in_the_picture_as_it_is() -> None:
    shades = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4, 1).repeat(3, axis=-1)
    rows = (Row(words="one", frames=shades), Row(words="two", frames=255 - shades))
    picture = np.asarray(sheet([Block(title="a", rows=rows), Block(title="b", rows=rows[:1])]))
    shown = shades[0].repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    height, width = shown.shape[:2]
    (top,) = {
        y for y in range(len(picture) - height) if (picture[y : y + height, MARGIN : MARGIN + width] == shown).all()
    }
    assert top > MARGIN
    assert (picture[-MARGIN - height : -MARGIN, MARGIN : MARGIN + width] == 255 - shown).all()


def test_readme_shows_a_small_picture_of_the_models_and_plans_that_the_command_renders() -> None:
    assert "python -m benchmarks.frames_picture --out docs/frames.png" in (ROOT / "README.md").read_text()
    assert (ROOT / "docs/frames.png").stat().st_size < 150_000
    with Image.open(ROOT / "docs/frames.png") as picture:
        assert picture.width < 1200
    for name, plans in PLANS.items():
        assert plans[0] == "none"
        assert plans[1] == FAMILIES[name].defaults.broadcast
        assert set(plans) <= set(FAMILIES[name].presets)
