"""Features: log power per receiver, band and frame, with the absolute level kept.

B batch, R receivers, T samples, N = 2048 FFT points, K = 128 bands of N/K bins, F = 32 frames.

    (B, R, T) complex IQ → two-sided STFT (Hann, hop 512, no padding) → |X|²/(N Σw²) → sum over a band's bins → dB

The scaling is Parseval's: the bands of a frame add up to its mean power. The reference is 1 mW where the recording
states its full scale in dBm, so that a value is the power in dBm that fell into one band in one frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

FFT_POINTS = 2048
HOP = 512
BANDS = 128
FRAMES = 32
SAMPLES = FFT_POINTS + (FRAMES - 1) * HOP  # 17,920: 93 ms at 192 kHz
SAMPLE_RATE_HZ = 192_000.0
REFERENCE = "1 mW in one band and frame"
QUIETEST = 1e-20  # fraction of full scale: keeps digital silence finite, -200 dB
FEATURE_VERSION = 1  # change it when a number changes: caches are made anew


def band_powers(samples: Tensor, full_scale_dbm: Tensor) -> Tensor:
    """(B, R, T ≥ 17,920) complex fractions of full scale and (B, R) dBm → (B, R, 128, 32) float32 dB, on any device."""
    window = torch.hann_window(FFT_POINTS, dtype=torch.float32, device=samples.device)
    frames = samples[..., :SAMPLES].unfold(-1, FFT_POINTS, HOP)  # (B, R, F, N)
    spectrum = torch.fft.fft(frames * window)
    bins = torch.view_as_real(spectrum).reshape(*spectrum.shape[:-1], BANDS, 2 * FFT_POINTS // BANDS)
    power = torch.linalg.vector_norm(bins, dim=-1).square() / (FFT_POINTS * window.square().sum())
    # From the lowest frequency to the highest; half of all bins are a whole number of bands, so bands can be shifted
    power = power.roll(BANDS // 2, dims=-1)
    level = 10 * torch.log10(power + QUIETEST) + full_scale_dbm[..., None, None].to(torch.float32)
    return level.transpose(-1, -2).contiguous()
