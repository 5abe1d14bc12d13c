"""Mean received power: distance law and shadow maps, with their gradients.

Received power in dBm = Pt + Gt + Gr - PL(d₀) - 10 n log₁₀(d/d₀) - S_i(r) - F, with PL(d₀) = 20 log₁₀(4π d₀/λ).
"""

from __future__ import annotations

import numpy as np

from heimdall.tasks.localization.geometry import Array
from heimdall.tasks.localization.scene import Scene

SPEED_OF_LIGHT = 299_792_458.0  # m/s
NEAREST_KM = 0.1  # the distance law does not hold nearer than this


def reference_loss_db(frequency_hz: float, distance_km: float) -> float:
    """Free-space loss at the reference distance in dB."""
    return float(20 * np.log10(4 * np.pi * distance_km * 1e3 * frequency_hz / SPEED_OF_LIGHT))


def mean_gain(scene: Scene, positions: Array, *, with_maps: bool) -> Array:
    """Received minus transmitted power in dB without fading: (count, 2) km → (count, receivers)."""
    distance = np.linalg.norm(positions[:, None, :] - scene.receiver_positions[None], axis=2)
    decades = np.log10(np.maximum(distance, NEAREST_KM) / scene.reference_distance_km)
    gain = (
        scene.transmit_gain_dbi
        + np.array([receiver.gain_dbi for receiver in scene.receivers])
        - reference_loss_db(scene.frequency_hz, scene.reference_distance_km)
        - 10 * scene.path_loss_exponent * decades
    )
    if with_maps:
        gain = gain - shadowing(scene, positions)[0]
    return np.asarray(gain, np.float64)


def mean_gain_gradient(scene: Scene, positions: Array) -> Array:
    """Gradient of :func:`mean_gain` with maps in dB/km: (count, 2) → (count, receivers, 2).

    Distance law: g_i = -(10 n / ln 10) (r - r_i)/|r - r_i|² (Patwari et al. 2003), zero where the law is cut off.
    """
    offset = positions[:, None, :] - scene.receiver_positions[None]
    squared = (offset**2).sum(axis=2, keepdims=True)
    law = -10 * scene.path_loss_exponent / np.log(10) * offset / np.maximum(squared, NEAREST_KM**2)
    law = np.where(squared > NEAREST_KM**2, law, 0.0)
    return np.asarray(law - shadowing(scene, positions)[1], np.float64)


def shadowing(scene: Scene, positions: Array) -> tuple[Array, Array]:
    """Bilinear value (count, receivers) in dB and gradient (count, receivers, 2) in dB/km of the shadow maps."""
    maps, step = scene.shadow_maps, scene.map_step_km
    node = (positions - scene.box[0]) / step
    node = np.clip(node, 0, np.array(maps.shape[1:]) - 1.000001)
    corner = np.floor(node).astype(int)
    east, north = (node - corner).T
    i, j = corner.T
    low_low, high_low = maps[:, i, j], maps[:, i + 1, j]
    low_high, high_high = maps[:, i, j + 1], maps[:, i + 1, j + 1]
    south, up = low_low + (high_low - low_low) * east, low_high + (high_high - low_high) * east
    value = south + (up - south) * north
    slope_east = ((high_low - low_low) * (1 - north) + (high_high - low_high) * north) / step
    slope_north = (up - south) / step
    return value.T, np.stack([slope_east.T, slope_north.T], axis=2)
