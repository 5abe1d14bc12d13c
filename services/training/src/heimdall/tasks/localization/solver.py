"""The classical solver: maximum likelihood over a grid on received powers, transmit power profiled out.

With received powers p_i in dBm, mean gains g_i(r) and independent Gaussian fading of one variance, the transmit power
that fits best at r is the mean of p_i - g_i(r); what is left is the sum of squares about that mean, and its least over
the grid is the estimate. Given the distance law alone it is the classical solver; given the true shadow maps, a limit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heimdall.tasks.localization.features import BANDS, SAMPLE_RATE_HZ
from heimdall.tasks.localization.geometry import Array
from heimdall.tasks.localization.propagation import mean_gain
from heimdall.tasks.localization.scene import Scene

CHANNEL_HZ = 21e3  # narrow-band FM voice of 5 kHz deviation (Carson: 16 kHz) and the oscillators' offsets
LEAST_SNR = 0.1  # of noise power in the channel; six times the spread of the estimate from noise alone
SESSIONS_AT_ONCE = 32
GRID_STEP_KM = 0.5


def signal_powers(features: npt.NDArray[np.float32]) -> Array:
    """(count, R, 128, 32) dB → (count, R) signal power in dBm, NaN where a receiver hears nothing but noise.

    Power in the channel's bands less the noise there, as the median of the other bands tells it.
    """
    power = (10 ** (features.astype(np.float64) / 10)).mean(axis=-1)
    half = round(CHANNEL_HZ / (SAMPLE_RATE_HZ / BANDS) / 2)
    channel = slice(BANDS // 2 - half, BANDS // 2 + half)
    noise = np.median(np.delete(power, channel, axis=-1), axis=-1) * 2 * half
    signal = power[..., channel].sum(axis=-1) - noise
    heard = signal > LEAST_SNR * noise
    return np.where(heard, 10 * np.log10(np.where(heard, signal, 1.0)), np.nan)


def grid(scene: Scene, step_km: float = GRID_STEP_KM) -> Array:
    """(nodes, 2) positions in km over the scene's box."""
    low, high = scene.box
    axes = [np.arange(start, stop + step_km / 2, step_km) for start, stop in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def solve(powers_dbm: Array, scene: Scene, *, with_maps: bool, step_km: float = GRID_STEP_KM) -> Array:
    """(count, R) received powers in dBm, NaN where not heard → (count, 2) km, the most likely node of the grid.

    A session heard nowhere gives the middle of the grid's first best node, as any other would be as good.
    """
    nodes = grid(scene, step_km)
    gains = mean_gain(scene, nodes, with_maps=with_maps)
    # Centring keeps the sums of squares small, so that nothing is lost in their difference
    center = gains.mean()
    gains_t, squares_t = (gains - center).T, ((gains - center) ** 2).T
    best = np.empty(len(powers_dbm), np.int64)
    for start in range(0, len(powers_dbm), SESSIONS_AT_ONCE):
        batch = powers_dbm[start : start + SESSIONS_AT_ONCE]
        heard = np.isfinite(batch).astype(np.float64)
        number = np.maximum(heard.sum(axis=1, keepdims=True), 1)
        power = np.where(heard > 0, batch, 0.0)
        power = heard * (power - power.sum(axis=1, keepdims=True) / number)
        # Σ(p-g)² - (Σ(p-g))²/n over the receivers that heard it; Σp = 0 and Σp² is the same for all nodes
        cost = heard @ squares_t - 2 * power @ gains_t - (heard @ gains_t) ** 2 / number
        best[start : start + len(batch)] = cost.argmin(axis=1)
    return np.asarray(nodes[best], np.float64)
