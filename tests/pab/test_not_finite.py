"""A NaN or an infinite value that a decoder makes fails the clip at stage decode; it never becomes a black video."""

import ast
from pathlib import Path

import pytest
import torch

from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_work import render_clip
from jobs.rendering.frames import ComingFrames
from pab.model import NotFiniteError
from pab.parallel.mesh import NodeGroup
from pab.sampling.device_clock import DeviceClock
from pab.vae.pixels import clip_bytes, pack, packed_shape, to_bytes, to_even_bytes, unpack
from tests.pab import test_loops
from tests.pab.every_family import SMALL, load
from tests.pab.poisoned import counts_on_ranks, decoded, poison
from tests.ranks import run_on_ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*SMALL)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "demo_wan"])  # it decodes with the demo's codec
def test_one_nan_in_a_bias_of_any_familys_decoder_is_counted_in_every_clip(weights, tmp_path, name):
    assert decoded(name, load(name, weights)).not_finite.sum() == 0
    spoilt = decoded(name, load(name, poison(weights, name, tmp_path)))
    assert min(spoilt.not_finite.tolist()) > 0
    with pytest.raises(NotFiniteError, match=r"decoded values are NaN or infinite.*weights of the VAE"):
        spoilt.fetch()


@pytest.mark.parametrize("name", ["demo", "wan"])
def test_an_infinite_value_is_no_white_pixel(weights, tmp_path, name):
    spoilt = decoded(name, load(name, poison(weights, name, tmp_path, float("inf"))))
    assert min(spoilt.not_finite.tolist()) > 0


def test_counts_come_to_the_root_with_the_pieces_of_other_ranks(weights, tmp_path):
    poisoned = tmp_path
    for name in ("open_sora", "latte", "wan"):
        poison(weights, name, poisoned)
    root, other = run_on_ranks(2, counts_on_ranks, weights, poisoned)
    assert all(min(counts) > 0 for counts in root.values()), root
    assert set(root) == set(other) == {"open_sora", "latte", "wan"}
    assert all(sum(counts) == 0 for counts in other.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_carry_the_count_of_their_own_image(value, dtype):
    pixels = torch.rand(3, 3, 4, 6).to(dtype) * 2 - 1
    pixels[1, 2, 0, :5] = value
    packed = pack(pixels)
    assert packed.shape == packed_shape(3, 4, 6)
    images, counts = unpack(packed, 4, 6)
    assert counts.tolist() == [0, 5, 0]
    assert torch.equal(images[::2], to_bytes(pixels)[::2])
    frames, by_clip = clip_bytes(pixels[None].transpose(1, 2), to_even_bytes)
    assert (frames.shape, by_clip.tolist()) == ((1, 3, 4, 6, 3), [5])


def test_frames_with_a_value_that_is_not_finite_are_refused_at_every_fetch():
    clock = DeviceClock(torch.device("cpu"))
    clock.mark()
    coming = ComingFrames(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), clock, torch.tensor(7))
    for _ in range(2):
        with pytest.raises(NotFiniteError, match="7 of 96 decoded values are NaN or infinite"):
            coming.fetch()
    assert coming.spoilt


def test_a_decoder_that_spoils_the_beginning_of_the_next_loop_fails_at_decode(weights, tmp_path):
    folder = poison(weights, "open_sora", tmp_path) / "open_sora"
    attempt, group = Attempt(clip=test_loops.CLIP, number=1), NodeGroup()
    with pytest.raises(NotFiniteError, match="decoded values"):
        render_clip(
            test_loops.loaded(folder, group), attempt, settings=test_loops.settings(folder), group=group
        )  # fmt: skip
    assert attempt.stages.current == "decode"


def test_floats_become_bytes_in_one_file_alone():
    """Who adds a decoder goes through `pab/vae/pixels.py`, which counts; another cast to bytes would count nothing."""
    found = set()
    for path in [*(ROOT / "pab").rglob("*.py"), *(ROOT / "jobs" / "rendering").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                casts = node.func.attr == "to" and any(ast.unparse(each) == "torch.uint8" for each in node.args)
                if casts or node.func.attr == "byte":
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == {"pab/vae/pixels.py"}
