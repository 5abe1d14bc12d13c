"""Planted faults are caught, and the figures are those of known images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from heimdall.errors import DataError
from heimdall.tasks.ptychography.evaluate import (
    compare,
    first_below,
    flatten_phase,
    half_bit,
    resolution,
    ring_correlation,
)
from heimdall.tasks.ptychography.simulate import make_object
from heimdall.tasks.ptychography.stitch import Stitcher

EDGE = 160


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return make_object("lines", (EDGE, EDGE), np.random.default_rng(2), 1.0)


def noisy(values: np.ndarray, level: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    noise = random.standard_normal(values.shape) + 1j * random.standard_normal(values.shape)
    return (values + level * noise).astype(np.complex64)


def test_perfect_reconstruction_has_perfect_figures(truth: np.ndarray) -> None:
    found = compare(truth, truth)
    assert found.phase_ssim == pytest.approx(1)
    assert found.amplitude_mae == pytest.approx(0, abs=1e-6)
    assert found.phase_frc50 == found.rings
    assert (found.shift_px, found.orientation, found.sign) == (0, "right", "right")


def test_scale_global_phase_and_phase_plane_do_not_count(truth: np.ndarray) -> None:
    rows, columns = np.indices(truth.shape)
    changed = truth * 7.5 * np.exp(1j * (2.1 + 0.02 * rows - 0.05 * columns))
    found = compare(changed.astype(np.complex64), truth)
    assert found.phase_mae_rad < 0.01
    assert found.amplitude_mae < 1e-4
    assert found.shift_px < 0.2


def test_planted_shift_is_measured_and_undone(truth: np.ndarray) -> None:
    shifted = np.roll(truth, (3, -5), (0, 1))
    found = compare(shifted, truth)
    assert found.shift_px == pytest.approx(np.hypot(3, 5), abs=0.2)
    assert found.phase_ssim > 0.99


def test_planted_shift_of_part_of_a_pixel_is_measured(truth: np.ndarray) -> None:
    spectrum = ndimage.fourier_shift(np.fft.fft2(truth), (0.6, 0.0))
    assert compare(np.fft.ifft2(spectrum).astype(np.complex64), truth).shift_px == pytest.approx(0.6, abs=0.11)


@pytest.mark.parametrize(
    ("planted", "name"),
    [
        (lambda o: o[::-1, ::-1], "point-mirrored"),
        (lambda o: o[::-1], "rows mirrored"),
        (lambda o: o[:, ::-1], "columns mirrored"),
        (lambda o: o.T, "transposed"),
    ],
)
def test_planted_mirror_is_caught(truth: np.ndarray, planted: object, name: str) -> None:
    assert callable(planted)
    found = compare(noisy(planted(truth), 0.02), truth)
    assert found.orientation == name
    assert found.sign == "right"
    assert found.phase_ssim < 0.6


def test_planted_sign_error_is_caught(truth: np.ndarray) -> None:
    found = compare(noisy(truth.conj(), 0.02), truth)
    assert found.sign == "wrong"
    assert found.orientation == "right"


def test_more_noise_means_worse_figures(truth: np.ndarray) -> None:
    little, much = compare(noisy(truth, 0.05), truth), compare(noisy(truth, 0.3), truth)
    assert little.phase_ssim > much.phase_ssim
    assert little.amplitude_psnr_db > much.amplitude_psnr_db
    assert little.phase_frc50 > much.phase_frc50
    assert little.phase_mae_rad < much.phase_mae_rad


def test_images_of_different_shape_are_refused(truth: np.ndarray) -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        compare(truth[1:], truth)


def test_ring_correlation_falls_where_noise_begins() -> None:
    random = np.random.default_rng(1)
    common = ndimage.gaussian_filter(random.standard_normal((128, 128)), 3)
    first, second = (common + 0.01 * random.standard_normal(common.shape) for _ in range(2))
    correlation, pixels = ring_correlation(first, second)
    assert correlation[3] > 0.95
    assert abs(correlation[50:].mean()) < 0.1
    assert 5 < first_below(correlation, 0.5) < 40
    assert first_below(correlation, half_bit(pixels)) > first_below(correlation, 0.5)


def test_resolution_of_two_noisy_views_gets_worse_with_noise(truth: np.ndarray) -> None:
    fine = resolution(noisy(truth, 0.05, 1), noisy(truth, 0.05, 2))
    coarse = resolution(noisy(truth, 0.5, 1), noisy(truth, 0.5, 2))
    assert 1.0 <= fine["resolution_half_px"] < coarse["resolution_half_px"]


def test_phase_plane_is_removed_from_a_flat_object() -> None:
    rows, columns = np.indices((40, 50))
    plane = np.exp(1j * (0.3 * rows - 0.2 * columns + 1))
    assert np.abs(np.angle(flatten_phase(plane))).max() < 1e-3


def test_stitching_puts_every_window_back_where_it_was_cut(truth: np.ndarray) -> None:
    corners = np.array([[10, 20], [30, 25], [41, 60], [12, 55]])
    patches = np.stack([truth[row : row + 64, column : column + 64] for row, column in corners])
    light = np.random.default_rng(3).uniform(0.5, 1, patches.shape).astype(np.float32)
    stitcher = Stitcher(corners, 64)
    stitcher.add(patches, light, corners)
    image = stitcher.image()
    assert image.corner == (10, 20)
    seen = image.light > 0
    wanted = truth[np.ix_(image.rows, image.columns)]
    np.testing.assert_allclose(image.values[seen], wanted[seen], atol=1e-3)
    # a mirrored stitch, which a single window would not show
    wrong = Stitcher(-corners, 64)
    wrong.add(patches, light, -corners)
    assert np.abs(wrong.image().values - wrong.image().values.mean()).std() > 0
    assert np.corrcoef(np.angle(wrong.image().values).ravel(), np.angle(wanted).ravel())[0, 1] < 0.5
