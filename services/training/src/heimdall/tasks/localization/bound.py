"""Cramér–Rao lower bound for a solver that knows the true shadow maps.

Unknown are the position (2) and the transmit power (1); known are the mean gains g_i(r). With fading of variance σ² the
Fisher information of (r, Pt) is [[GᵀG, Gᵀ1], [1ᵀG, m]]/σ² for the m receivers that hear the signal, G (m, 2) being the
gradients in dB/km (distance law: Patwari et al. 2003, here with the gradient of the maps). The Schur complement takes
Pt out:

    J = Gᵀ(I - 11ᵀ/m)G/σ²        cov ≥ J⁻¹

The bound is local: where maps make a position ambiguous, every solver is above it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heimdall.tasks.localization.geometry import Array
from heimdall.tasks.localization.propagation import mean_gain_gradient
from heimdall.tasks.localization.scene import Scene

DRAWS = 64


def cramer_rao_covariance(scene: Scene, positions: Array, heard: npt.NDArray[np.bool_]) -> Array:
    """Lower bound of the covariance, (count, 2, 2) in km², at ``positions`` (count, 2) km.

    ``heard`` (count, R) says which receivers hear the signal; fewer than three leave the position open: infinity.
    """
    gradient = mean_gain_gradient(scene, positions) * heard[..., None]
    number = np.maximum(heard.sum(axis=1), 1)[:, None, None]
    mean = gradient.sum(axis=1, keepdims=True) / number
    centred = (gradient - mean) * heard[..., None]
    information = centred.transpose(0, 2, 1) @ centred / scene.fading_db**2
    determinable = np.linalg.det(information) > 1e-12
    covariance = np.full_like(information, np.inf)
    covariance[determinable] = np.linalg.inv(information[determinable])
    return np.asarray(covariance, np.float64)


def bound_distances(covariance: Array, seed: int = 0) -> Array:
    """Distances in metres that an unbiased Gaussian estimate at the bound would show: (count · draws,).

    Draws stand in for the median and quantiles, which have no closed form; the seed is fixed.
    """
    finite = covariance[np.isfinite(covariance).all(axis=(1, 2))]
    factor = np.linalg.cholesky(finite)
    normal = np.random.default_rng(seed).standard_normal((len(finite), 2, DRAWS))
    return np.asarray(np.linalg.norm(factor @ normal, axis=1).ravel() * 1e3, np.float64)
