"""PSNR and SSIM against values known from formulas and from a computation by hand; VMAF; what is told of several clips."""

import math

import numpy as np
import pytest

from jobs.quality.alike import psnr, ssim
from jobs.quality.compare import alike_facts
from jobs.quality.headline import quality_summary, quality_text
from jobs.quality.vmaf import MIN_SIDE, NoVmafError, vmaf


def noise(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def grey(value: int, size=(2, 16, 16)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def test_equal_frames_are_infinitely_alike():
    frames = noise(3, 20, 24, 3)
    assert psnr(frames, frames) == math.inf
    assert ssim(frames, frames) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("difference", "expected"), [(1, 48.1308), (5, 34.1514), (255, 0.0)])
def test_psnr_of_a_constant_difference(difference, expected):
    assert psnr(grey(0), grey(difference)) == pytest.approx(expected, abs=1e-4)


def test_psnr_is_over_all_frames_and_channels():
    other = grey(10)
    other[0, :, :, 0] = 16  # 6 off in a third of half the values: a mean squared error of 6
    assert psnr(grey(10), other) == pytest.approx(10 * math.log10(255**2 / 6), abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [(100, 120), (0, 255), (10, 11)])
def test_ssim_of_flat_frames_is_the_luminance_term_alone(a, b):
    c1 = (0.01 * 255) ** 2
    assert ssim(grey(a), grey(b)) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-9)


def test_ssim_is_what_the_formula_gives_window_by_window():
    a, b = noise(1, 14, 13, 3), noise(1, 14, 13, 3, seed=1)
    luma = [(frame[0] @ np.array([0.2126, 0.7152, 0.0722])) for frame in (a, b)]
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row in range(14 - 10):
        for column in range(13 - 10):
            x, y = (plane[row : row + 11, column : column + 11] for plane in luma)
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            cov = (weights * (x - mean_x) * (y - mean_y)).sum()
            values.append(
                (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
            )
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-10)


def test_frames_smaller_than_the_window_are_compared_whole():
    a = noise(2, 4, 5, 3)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, noise(2, 4, 5, 3, seed=1)) < 0.9


def test_frames_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"frames \(2, 16, 16, 3\) and \(3, 16, 16, 3\), need one shape"):
        psnr(grey(0), grey(0, (3, 16, 16)))


def waves(num_frames: int = 4, height: int = 72, width: int = 96) -> np.ndarray:
    t, y, x = np.mgrid[0:num_frames, 0:height, 0:width]
    grey = 127 + 80 * np.sin((x + 3 * t) / 5) + 30 * np.cos(y / 7)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def with_noise(frames: np.ndarray, levels: int) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(-levels, levels + 1, frames.shape)
    return np.clip(frames + drawn, 0, 255).astype(np.uint8)


def test_vmaf_is_near_100_for_the_same_frames_and_falls_with_what_differs():
    frames = waves()
    scores = [vmaf(frames, other) for other in (frames, with_noise(frames, 60), frames[:, ::-1])]
    assert scores[0] > 97
    assert scores[0] > scores[1] > scores[2]
    assert scores[2] < 50


def test_frames_of_odd_sizes_have_a_vmaf():
    assert vmaf(waves(2, 65, 67), waves(2, 65, 67)) > 97


def test_a_clip_too_small_for_vmaf_says_so_and_has_psnr_and_ssim():
    a, b = waves(2, MIN_SIDE - 1, 80), with_noise(waves(2, MIN_SIDE - 1, 80), 10)
    found = alike_facts(a, b)
    assert found["vmaf"] is None
    assert found["no_vmaf"] == "too small for VMAF: 80x63, needs 64 pixels on each side"
    assert 20 < found["psnr_db"] < 60
    assert 0 < found["ssim"] < 1
    same = alike_facts(a, a)
    assert (same["identical"], same["psnr_db"], same["vmaf"], same["no_vmaf"]) == (True, None, None, None)


def test_vmaf_that_does_not_come_in_time_is_told():
    with pytest.raises(NoVmafError, match=r"no VMAF: ffmpeg did not end within 0 s and was killed"):
        vmaf(waves(), waves(), limit_s=1e-4)
    with pytest.raises(ValueError, match="need one shape"):
        vmaf(waves(2), waves(3))


def baseline(name: str, psnr_db: float | None, ssim_: float = 0.9, **more) -> dict:
    return {
        "clip_id": name, "clip": {"broadcast": "pab"}, "psnr_db": psnr_db, "ssim": ssim_, "identical": psnr_db is None,
    } | more  # fmt: skip


def test_the_headline_is_the_worst_psnr_of_so_many_clips():
    summary = quality_summary(
        [
            baseline("a", 30.0, vmaf=80.0),
            baseline("b", 21.26, 0.7, vmaf=3.5),
            baseline("c", None, 1.0),
            baseline("d", 28.0),
        ]
    )
    assert summary is not None
    assert summary["clips"] == 4
    assert (summary["identical"], summary["worst_clip_id"]) == (1, "b")
    assert summary["psnr_db"] == {"worst": 21.26, "median": 28.0}
    assert summary["ssim"] == {"worst": 0.7, "median": 0.9}
    assert summary["vmaf"] == {"worst": 3.5, "median": 3.5, "clips": 2}
    assert quality_text(summary) == (
        "worst PSNR 21.3 dB of 4 clips rendered with and without reuse (clip b); median 28.0 dB; SSIM 0.7000, median 0.9000; "
        "VMAF 3.5, median 3.5 of 2 of them"
    )


def test_what_is_told_of_no_clip_of_equal_ones_and_of_reports_of_before():
    assert quality_summary([]) is None
    assert quality_text(None) == "not measured, no clip was rendered with and without reuse"
    assert (
        quality_text(quality_summary([baseline("a", None)]))
        == "the same frames in 1 clip rendered with and without reuse"
    )
    assert quality_text(quality_summary([baseline("a", 30.0)])).endswith("; no VMAF")
    small = quality_summary(
        [baseline("a", 30.0, vmaf=None, no_vmaf="too small for VMAF: 8x8, needs 64 pixels on each side")]
    )
    assert quality_text(small).endswith("too small for VMAF: 8x8, needs 64 pixels on each side")
