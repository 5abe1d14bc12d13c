"""How good a reconstruction is: beside a known truth or, without one, beside a second one from other patterns.

The data leave three freedoms, which are taken out before anything is compared: the scale of the amplitude, a phase
plane (its constant: global phase; its slope: a shift of the detector), and a shift between the two images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import metrics, registration

from heimdall.errors import DataError
from heimdall.tasks.ptychography.stitch import ObjectImage

METRICS: Any = metrics  # scikit-image's functions carry no types
REGISTRATION: Any = registration

Complex = npt.NDArray[np.complex64]
Real = npt.NDArray[np.float64]

ORIENTATIONS = ("right", "point-mirrored", "rows mirrored", "columns mirrored", "transposed")
RIGHT_FROM = 0.02  # another orientation must correlate better by this much before it is believed


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Figures of a reconstruction beside the truth. PSNR's peak and SSIM's range: the truth's maximum - minimum."""

    amplitude_ssim: float
    phase_ssim: float
    amplitude_psnr_db: float
    phase_psnr_db: float
    amplitude_mae: float
    phase_mae_rad: float
    amplitude_frc50: float  # ring (cycles along the image's edge) at which the correlation first falls below 0.5
    phase_frc50: float
    rings: float  # rings there are: up to Nyquist
    shift_px: float  # what the image had to be moved by
    correlation: float  # of the phase, after alignment; negative where its sign is wrong
    orientation: str  # one of ORIENTATIONS
    sign: Literal["right", "wrong"]

    @property
    def metrics(self) -> dict[str, float]:
        """The figures among the fields."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, float)}


def flatten_phase(values: npt.NDArray[Any]) -> Complex:
    """``values`` (H, W) complex without its phase plane: slope and constant fitted, in radians over pixels."""
    rows, columns = np.indices(values.shape, dtype=np.float64)
    # first the slope from neighbours, which no 2π jump disturbs, then least squares on what is left
    slope_rows = np.angle(np.sum(values[1:] * values[:-1].conj()))
    slope_columns = np.angle(np.sum(values[:, 1:] * values[:, :-1].conj()))
    level = values * np.exp(-1j * (slope_rows * rows + slope_columns * columns))
    level = level * np.exp(-1j * np.angle(level.sum()))
    base = np.column_stack([rows.ravel(), columns.ravel(), np.ones(rows.size)])
    plane, *_ = np.linalg.lstsq(base, np.angle(level).ravel(), rcond=None)
    return np.asarray(level * np.exp(-1j * (base @ plane).reshape(values.shape)), np.complex64)


def truth_box(image: ObjectImage, truth: Complex, box: tuple[slice, slice]) -> tuple[Complex, Complex]:
    """The same pixels of a reconstruction and of the truth, whose [0, 0] is object pixel (0, 0)."""
    rows, columns = image.rows[box[0]], image.columns[box[1]]
    inside_rows = (rows >= 0) & (rows < truth.shape[0])
    inside_columns = (columns >= 0) & (columns < truth.shape[1])
    estimate = image.values[box][np.ix_(inside_rows, inside_columns)]
    return estimate, truth[np.ix_(rows[inside_rows], columns[inside_columns])]


def compare(estimate: Complex, truth: Complex, *, border: int = 20) -> Comparison:
    """Figures of ``estimate`` beside ``truth``, both (H, W), without ``border`` pixels along each edge.

    A shift is found to a tenth of a pixel, reported and undone; a mirror or a wrong sign is reported, never undone.

    Raises :class:`~heimdall.errors.DataError` for images of different shape or without pixels inside the border.
    """
    if estimate.shape != truth.shape or min(truth.shape) < 2 * border + 16:
        raise DataError(
            f"A reconstruction of {estimate.shape} pixels cannot be compared with a truth of {truth.shape}.",
            mend=f"Both need one shape, and 16 pixels inside a border of {border}.",
        )
    shift = _shift(truth, estimate)
    # windows with circular edges: what the shift brought in from the other side is cut off with the border
    moved = _moved(estimate, shift)
    inside = (slice(border, truth.shape[0] - border), slice(border, truth.shape[1] - border))
    got, wanted = flatten_phase(moved[inside]), flatten_phase(truth[inside])
    amplitude, amplitude_truth = np.abs(got).astype(np.float64), np.abs(wanted).astype(np.float64)
    amplitude *= amplitude_truth.mean() / max(amplitude.mean(), 1e-12)
    phase, phase_truth = np.angle(got).astype(np.float64), np.angle(wanted).astype(np.float64)
    orientation, sign = _orientation(estimate, truth)
    figures: dict[str, float] = {}
    for name, mine, true, unit in (
        ("amplitude", amplitude, amplitude_truth, ""),
        ("phase", phase, phase_truth, "_rad"),
    ):
        span = float(np.ptp(true)) or 1.0
        figures[f"{name}_ssim"] = float(METRICS.structural_similarity(true, mine, data_range=span))
        figures[f"{name}_psnr_db"] = float(METRICS.peak_signal_noise_ratio(true, mine, data_range=span))
        figures[f"{name}_mae{unit}"] = float(np.abs(mine - true).mean())
        figures[f"{name}_frc50"] = first_below(ring_correlation(mine, true)[0], 0.5)
    return Comparison(
        **figures,
        rings=float(min(phase.shape) // 2),
        shift_px=float(np.hypot(*shift)),
        correlation=_correlation(phase, phase_truth),
        orientation=orientation,
        sign=sign,
    )


def ring_correlation(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> tuple[Real, npt.NDArray[np.int64]]:
    """Fourier ring correlation of two images (H, W), and the pixels in each ring.

    Ring r holds the frequencies of r to r + 1 cycles along the shorter edge, which the images are cut to, under a Hann
    window (van Heel & Schatz, J. Struct. Biol. 151, 250, 2005).
    """
    edge = min(first.shape)
    window = np.outer(np.hanning(edge), np.hanning(edge))
    spectra = []
    for image in (first, second):
        square = image[:edge, :edge]
        spectra.append(np.fft.fft2((square - square.mean()) * window))
    frequency = np.fft.fftfreq(edge) * edge
    ring = np.hypot(frequency[:, None], frequency[None]).astype(int)
    rings = edge // 2
    chosen = ring < rings

    def total(values: npt.NDArray[Any]) -> Real:
        return np.bincount(ring[chosen], values[chosen].real, minlength=rings).astype(np.float64)

    cross = total(spectra[0] * spectra[1].conj())
    power = np.sqrt(total(np.abs(spectra[0]) ** 2) * total(np.abs(spectra[1]) ** 2))
    correlation = cross / np.maximum(power, 1e-30)
    return correlation, np.bincount(ring[chosen], minlength=rings)


def half_bit(pixels: npt.NDArray[np.int64]) -> Real:
    """Threshold of half a bit of information a pixel for two half data sets (van Heel & Schatz 2005, eq. 17)."""
    root = np.sqrt(np.maximum(pixels / 2, 1))  # a real image's spectrum holds each frequency twice
    return np.minimum(1.0, (0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root))


def first_below(correlation: Real, threshold: float | Real) -> float:
    """First ring, interpolated, at which ``correlation`` falls below ``threshold``; else the number of rings."""
    gap = correlation - threshold
    below = np.flatnonzero(gap[1:] < 0)
    if not len(below):
        return float(len(correlation))
    ring = int(below[0]) + 1
    before = max(float(gap[ring - 1]), 0.0)
    return ring - 1 + before / (before - float(gap[ring]))


def half_correlation(first: Complex, second: Complex) -> tuple[Real, npt.NDArray[np.int64]]:
    """:func:`ring_correlation` of the phases of two reconstructions (H, W) of one object, after alignment."""
    moved = _moved(second, _shift(first, second))
    border = 8
    inside = (slice(border, first.shape[0] - border), slice(border, first.shape[1] - border))
    images = [np.angle(flatten_phase(values[inside])).astype(np.float64) for values in (first, moved)]
    return ring_correlation(*images)


def resolution(first: Complex, second: Complex) -> dict[str, float]:
    """Half-period resolution in pixels from two independent reconstructions (H, W) of the same object.

    Where :func:`half_correlation` falls below the half-bit curve and below 0.5.
    """
    correlation, pixels = half_correlation(first, second)
    crossings = {"half_bit": first_below(correlation, half_bit(pixels)), "half": first_below(correlation, 0.5)}
    return {f"resolution_{name}_px": len(correlation) / max(ring, 1e-9) for name, ring in crossings.items()}


def _shift(truth: Complex, estimate: Complex) -> npt.NDArray[np.float64]:
    images = [_bandpass(np.angle(flatten_phase(values))) for values in (truth, estimate)]
    shift, *_ = REGISTRATION.phase_cross_correlation(*images, upsample_factor=10, normalization=None)
    return np.asarray(shift, np.float64)


def _bandpass(image: npt.NDArray[Any]) -> Real:
    smooth: Real = image - ndimage.gaussian_filter(image, 8)
    return smooth * np.outer(np.hanning(image.shape[0]), np.hanning(image.shape[1]))


def _moved(values: Complex, shift: npt.NDArray[np.float64]) -> Complex:
    if not np.any(shift):
        return values
    return np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(values), shift)).astype(np.complex64)


def _correlation(first: Real, second: Real) -> float:
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / max(np.sqrt((first**2).sum() * (second**2).sum()), 1e-30))


def _orientation(estimate: Complex, truth: Complex) -> tuple[str, Literal["right", "wrong"]]:
    views = {
        "right": estimate,
        "point-mirrored": estimate[::-1, ::-1],
        "rows mirrored": estimate[::-1],
        "columns mirrored": estimate[:, ::-1],
    }
    if estimate.shape[0] == estimate.shape[1]:
        views["transposed"] = estimate.T
    wanted = _bandpass(np.angle(flatten_phase(truth)))
    found = {}
    for name, view in views.items():
        mine = _bandpass(np.angle(flatten_phase(view)))
        # the highest and the lowest correlation over all shifts: a wrong sign shows as the lowest
        over_shifts = np.fft.ifft2(np.fft.fft2(mine) * np.fft.fft2(wanted).conj()).real
        scale = np.sqrt((mine**2).sum() * (wanted**2).sum()) + 1e-30
        found[name] = (float(over_shifts.max() / scale), float(-over_shifts.min() / scale))
    best = max(found, key=lambda name: max(found[name]))
    if max(found[best]) < max(found["right"]) + RIGHT_FROM:
        best = "right"
    high, low = found[best]
    return best, "right" if high >= low else "wrong"
