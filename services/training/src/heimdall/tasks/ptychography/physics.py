"""The forward model: object and probe to diffraction amplitudes, and the losses that compare them with measured ones.

Shapes: B groups, C patterns in a group, m probe modes, N pixels along a pattern, S pixels along a group's canvas.

The object lives on whole pixels. The whole part of a position says where its window lies, the remainder moves the probe
(:func:`shift_probe`, exact for a band-limited probe), so that nothing is ever interpolated.

Patterns are in *corner order* here: zero frequency at [0, 0], as the FFT has it. Files hold them in centred order;
:func:`to_corner` is applied once, when a scan is loaded.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

EPSILON = 1e-6
DARK_COUNTS = 0.1  # photons a pixel that come from nowhere: one stray photon must not outweigh a whole pattern


def split_positions(
    centres: npt.NDArray[np.float64], size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Window corners (M, 2) in whole pixels and remainders (M, 2) in [-0.5, 0.5], both (row, column).

    A window centred on (row, column) has object[row, column] at its pixel (size/2, size/2).
    """
    whole = np.floor(centres + 0.5)
    return (whole - size // 2).astype(np.int64), (centres - whole).astype(np.float32)


def to_corner(patterns: Tensor) -> Tensor:
    """Centred patterns (..., N, N) with zero frequency moved to [0, 0]."""
    corner: Tensor = torch.fft.ifftshift(patterns, dim=(-2, -1))
    return corner


def ramps(remainders: Tensor, size: int) -> Tensor:
    """What a spectrum is multiplied with to move its image by ``remainders`` (..., 2) pixels: (..., 1, size, size)."""
    angle = -2 * math.pi * remainders[..., None] * torch.fft.fftfreq(size, device=remainders.device)
    # a plane wave is the product of its lines: far fewer sines than pixels
    turns = torch.polar(torch.ones_like(angle), angle)
    return turns[..., 0, None, :, None] * turns[..., 1, None, None, :]


def shift_probe(probe: Tensor, remainders: Tensor) -> Tensor:
    """Probes (..., m, N, N): ``probe``, (m, N, N) or one each, moved by ``remainders`` (..., 2) in pixels."""
    moved: Tensor = torch.fft.ifft2(torch.fft.fft2(probe) * ramps(remainders, probe.shape[-1]))
    return moved


def far_field(objects: Tensor, probes: Tensor) -> Tensor:
    """Wave at the detector (..., m, N, N): unitary FFT of objects (..., N, N) times probes (..., m, N, N)."""
    wave: Tensor = torch.fft.fft2(objects.unsqueeze(-3) * probes, norm="ortho")
    return wave


def intensity(wave: Tensor) -> Tensor:
    """Intensity (..., N, N) of a wave (..., m, N, N): probe modes are incoherent, so they add here."""
    power = wave.real.square() + wave.imag.square()
    return power.squeeze(-3) if power.shape[-3] == 1 else power.sum(-3)


def windows(starts: Tensor, size: int, canvas: int) -> tuple[Tensor, Tensor]:
    """Selection matrices (B, C, size, canvas) for rows and columns; ``starts`` (B, C, 2) is a window's corner."""
    positions = starts[..., None] + torch.arange(size, device=starts.device)
    select = (positions[..., None] == torch.arange(canvas, device=starts.device)).to(torch.float32)
    return select[:, :, 0], select[:, :, 1]


def cut(canvas: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Windows (B, C, N, N) of canvases (B, S, S), complex or real."""
    if canvas.is_complex():
        return torch.complex(cut(canvas.real, rows, columns), cut(canvas.imag, rows, columns))
    with torch.autocast(canvas.device.type, enabled=False):  # a selection must not round what it selects
        return rows @ canvas.unsqueeze(1) @ columns.mT


def place(patches: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sum (B, S, S) of patches (B, C, N, N) put where :func:`cut` takes them from: its transpose, so signs agree."""
    if patches.is_complex():
        return torch.complex(place(patches.real, rows, columns), place(patches.imag, rows, columns))
    with torch.autocast(patches.device.type, enabled=False):
        return (rows.mT @ patches @ columns).sum(1)


def merge(patches: Tensor, weights: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Canvases (B, S, S): mean of patches (B, C, N, N) weighted by ``weights`` (B, C, N, N), the probe's intensity.

    Where no probe reaches, the object is 1: nothing is known there.
    """
    total = place(weights, rows, columns)
    floor = 1e-4 * weights.amax()
    return (place(patches * weights, rows, columns) + floor) / (total + floor)


def poisson_loss(predicted: Tensor, counts: Tensor, log_factorials: Tensor, photon_scale: Tensor) -> Tensor:
    """Mean over patterns of the Poisson negative log-likelihood, sum over pixels of λ - k ln λ + ln k!.

    ``predicted`` intensity and ``counts`` k (..., N, N); ``log_factorials`` (...): sum over pixels of ln k!, known
    before training; λ = photon_scale² * predicted + :data:`DARK_COUNTS`.
    """
    rate = photon_scale.square() * predicted + DARK_COUNTS
    terms = rate - counts * torch.log(rate)
    return (terms.sum((-2, -1)) + log_factorials).mean()


def mae_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    """Mean absolute difference between the amplitude of ``predicted`` intensity and ``measured`` amplitude."""
    return (torch.sqrt(predicted + EPSILON**2) - measured).abs().mean()


def misfit(predicted: Tensor, measured: Tensor) -> Tensor:
    """Σ(|F| - A)² / ΣA² per pattern (...,) of ``predicted`` intensity and ``measured`` amplitude (..., N, N)."""
    difference = (torch.sqrt(predicted) - measured).square().sum((-2, -1))
    return difference / measured.square().sum((-2, -1))


def amplitude_scale(patterns: npt.NDArray[np.float32]) -> float:
    """c = sqrt((N/2)² / mean over patterns of ΣA²): the network sees X = c A."""
    energy = np.mean([np.square(pattern, dtype=np.float64).sum() for pattern in patterns])
    return float(patterns.shape[-1] / 2 / np.sqrt(energy))


def scale_probe(probe: npt.NDArray[np.complex64]) -> npt.NDArray[np.complex64]:
    """The probe (m, N, N) with Σ|P|² = (N/2)², so that an object of amplitude 1 gives patterns of mean energy."""
    energy = float(np.square(np.abs(probe), dtype=np.float64).sum())
    return np.asarray(probe * (probe.shape[-1] / 2 / np.sqrt(energy)), np.complex64)
