"""Figures of an estimate: distance errors in metres, and calibration of the stated uncertainty."""

from __future__ import annotations

import numpy as np

from heimdall.tasks.localization.geometry import Array

CHI_SQUARE_68 = -2 * float(np.log(1 - 0.68))  # quantile of χ² with two degrees of freedom: 2.279
CHI_SQUARE_95 = -2 * float(np.log(1 - 0.95))  # 5.991


def distance_figures(distance_m: Array) -> dict[str, float]:
    """Median, mean, 90th percentile and root mean square of (count,) distances in metres."""
    return {
        "median_m": float(np.median(distance_m)),
        "mean_m": float(np.mean(distance_m)),
        "p90_m": float(np.quantile(distance_m, 0.9)),
        "rmse_m": float(np.sqrt(np.mean(distance_m**2))),
    }


def standardised_squares(residual: Array, sigma: Array) -> Array:
    """(count, 2) residuals and standard deviations in one unit → (count,), χ² of two degrees of freedom if true."""
    return np.asarray(((residual / sigma) ** 2).sum(axis=1), np.float64)


def coverage(squares: Array, share: float) -> float:
    """Share of truths inside the ellipse that is stated to hold ``share`` of them; NaN where an ellipse is none."""
    if np.isnan(squares).any():
        return float("nan")
    return float(np.mean(squares < -2 * np.log(1 - share)))


def calibration_figures(residual: Array, sigma: Array) -> dict[str, float]:
    """Share of truths inside the 68 % and the 95 % ellipse."""
    squares = standardised_squares(residual, sigma)
    return {"coverage68": coverage(squares, 0.68), "coverage95": coverage(squares, 0.95)}
