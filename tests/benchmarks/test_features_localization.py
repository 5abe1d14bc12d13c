"""How fast features are made: batched torch beside one receiver at a time with SciPy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
import torch
from bench import Table, median_ratios

from heimdall.tasks.localization.features import BANDS, FFT_POINTS, FRAMES, HOP, SAMPLES, band_powers

RECEIVERS, SESSIONS = 7, 32
Samples = npt.NDArray[np.complex64]


def scipy_path(samples: Samples) -> npt.NDArray[np.float32]:
    """What a plain data loader does: one session, one receiver, one transform at a time."""
    window = scipy.signal.get_window("hann", FFT_POINTS).astype(np.float32)
    scale = FFT_POINTS * (window**2).sum()
    transform = scipy.signal.ShortTimeFFT(window, HOP, fs=1.0, fft_mode="twosided")
    first = FFT_POINTS // 2 // HOP
    found = np.empty((*samples.shape[:2], BANDS, FRAMES), np.float32)
    for session, receivers in enumerate(samples):
        for receiver, one in enumerate(receivers):
            spectrum = np.fft.fftshift(transform.stft(one, p0=first, p1=first + FRAMES), axes=0)
            power = (np.abs(spectrum) ** 2).reshape(BANDS, -1, FRAMES).sum(axis=1) / scale
            found[session, receiver] = 10 * np.log10(power + 1e-20)
    return found


def torch_path(samples: Samples, device: str, at_once: int) -> npt.NDArray[np.float32]:
    full_scale = torch.zeros(at_once, RECEIVERS, device=device)
    parts = [
        band_powers(torch.from_numpy(samples[start : start + at_once]).to(device), full_scale).cpu()
        for start in range(0, len(samples), at_once)
    ]
    return torch.cat(parts).numpy()


@pytest.mark.benchmark
def test_features_of_sessions_per_second(bench_table: Callable[..., Table], full_bench: bool) -> None:
    random = np.random.default_rng(0)
    samples = random.standard_normal((SESSIONS, RECEIVERS, SAMPLES, 2), np.float32).view(np.complex64)[..., 0]
    paths: dict[str, Callable[[], Any]] = {
        "SciPy, a receiver at a time": lambda: scipy_path(samples),
        "torch on the CPU, 4 sessions at once": lambda: torch_path(samples, "cpu", 4),
    }
    if torch.cuda.is_available():
        paths[f"torch on {torch.cuda.get_device_name()}, 32 sessions at once"] = lambda: torch_path(samples, "cuda", 32)
    expected = scipy_path(samples)
    for path in paths.values():
        np.testing.assert_allclose(path(), expected, atol=5e-3)

    def rate(path: Callable[[], Any]) -> Callable[[], float]:
        def measure() -> float:
            started = time.perf_counter()
            path()
            return SESSIONS / (time.perf_counter() - started)

        return measure

    base = "SciPy, a receiver at a time"
    figures = median_ratios(
        {name: rate(path) for name, path in paths.items()}, base=base, rounds=9 if full_bench else 2
    )
    table = bench_table(
        "Features of recordings",
        ["path", "sessions/s", "ratio"],
        f"A session is {RECEIVERS} receivers of {SAMPLES} samples, in and out of the processor's memory; "
        f"{torch.get_num_threads()} threads for torch. All paths give the same features within 0.005 dB.",
    )
    for name, (figure, ratio) in figures.items():
        table.row(name, figure, ratio)
