"""PSNR and SSIM against values known from their formulas and from a computation by hand."""

import math

import numpy as np
import pytest

from jobs.quality.alike import psnr, ssim


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
