from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
import torch

from heimdall.tasks.localization.features import BANDS, FFT_POINTS, FRAMES, HOP, SAMPLES, band_powers


def scipy_features(samples: npt.NDArray[np.complex64], full_scale_dbm: float) -> npt.NDArray[np.float64]:
    """The definition, one receiver at a time, in double precision."""
    window = scipy.signal.get_window("hann", FFT_POINTS)
    transform = scipy.signal.ShortTimeFFT(window, HOP, fs=1.0, fft_mode="twosided")
    first = FFT_POINTS // 2 // HOP  # the first slice that needs no padding
    spectrum = transform.stft(samples.astype(np.complex128), p0=first, p1=first + FRAMES)
    power = np.abs(np.fft.fftshift(spectrum, axes=0)) ** 2 / (FFT_POINTS * (window**2).sum())
    return 10 * np.log10(power.reshape(BANDS, -1, FRAMES).sum(axis=1)) + full_scale_dbm


def random_samples(*shape: int) -> npt.NDArray[np.complex64]:
    random = np.random.default_rng(0)
    return (random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(np.complex64)


def test_features_agree_with_scipy() -> None:
    samples = random_samples(2, 3, SAMPLES) * np.array([1e-3, 0.1, 1.0], np.float32)[:, None]
    full_scale = torch.tensor([[-50.0, -80.0, -100.0], [-30.0, -60.0, -90.0]])
    found = band_powers(torch.from_numpy(samples), full_scale).numpy()
    assert found.shape == (2, 3, BANDS, FRAMES)
    assert found.dtype == np.float32
    for session in range(2):
        for receiver in range(3):
            expected = scipy_features(samples[session, receiver], float(full_scale[session, receiver]))
            np.testing.assert_allclose(found[session, receiver], expected, atol=2e-3)


def test_bands_of_a_frame_add_up_to_the_power() -> None:
    samples = random_samples(1, 1, SAMPLES)
    level = band_powers(torch.from_numpy(samples), torch.tensor([[-70.0]]))[0, 0].double()
    total = 10 * torch.log10((10 ** (level / 10)).sum(0).mean())
    assert total == pytest.approx(10 * np.log10((np.abs(samples) ** 2).mean()) - 70, abs=0.1)


@pytest.mark.parametrize("frequency", [-0.45, -0.2, 0.1, 0.45])
def test_a_tone_lies_in_its_band_of_a_two_sided_spectrum(frequency: float) -> None:
    tone = np.exp(2j * np.pi * frequency * np.arange(SAMPLES)).astype(np.complex64)[None, None]
    level = band_powers(torch.from_numpy(tone), torch.zeros(1, 1))[0, 0].mean(-1)
    assert int(level.argmax()) == int((frequency + 0.5) * BANDS)


def test_ten_decibel_more_signal_is_ten_decibel_more_in_every_band() -> None:
    samples = torch.from_numpy(random_samples(1, 1, SAMPLES))
    quiet, loud = (band_powers(samples * scale, torch.zeros(1, 1)) for scale in (1.0, 10**0.5))
    torch.testing.assert_close(loud - quiet, torch.full_like(loud, 10.0), atol=1e-3, rtol=0)


def test_digital_silence_stays_finite() -> None:
    assert torch.isfinite(band_powers(torch.zeros(1, 1, SAMPLES, dtype=torch.complex64), torch.zeros(1, 1))).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_features_are_the_same_on_the_device() -> None:
    samples = torch.from_numpy(random_samples(2, 3, SAMPLES))
    full_scale = torch.zeros(2, 3)
    there = band_powers(samples.cuda(), full_scale.cuda()).cpu()
    torch.testing.assert_close(there, band_powers(samples, full_scale), atol=2e-3, rtol=0)
