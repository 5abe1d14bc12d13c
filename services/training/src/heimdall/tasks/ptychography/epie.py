"""The ordinary iterative method, to compare with: ePIE (Maiden & Rodenburg, Ultramicroscopy 109, 1256, 2009)."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.scan import Scan
from heimdall.tasks.ptychography.stitch import ObjectImage


def epie(
    scan: Scan, probe: Tensor, sweeps: int, *, object_step: float = 1.0, probe_step: float = 1.0, seed: int = 0
) -> tuple[ObjectImage, Tensor, list[tuple[float, float]]]:
    """Object, probe (1, N, N) and curve of (seconds, misfit met in the sweep) after ``sweeps`` over all patterns.

    One pattern after the other, in an order drawn anew each sweep; positions in whole pixels; one probe mode; the probe
    (1, N, N) with Σ|P|² = (N/2)² is improved with the object from the second sweep on. Starts from a flat object.
    """
    random = np.random.default_rng(seed)
    measured = physics.to_corner(torch.from_numpy(scan.patterns) * physics.amplitude_scale(scan.patterns)).contiguous()
    corners, _ = physics.split_positions(np.column_stack([scan.y, scan.x]), scan.size)
    origin = corners.min(axis=0)
    height, width = (corners.max(axis=0) - origin + scan.size).tolist()
    values, light = torch.ones(height, width, dtype=torch.complex64), probe[0].clone()
    curve: list[tuple[float, float]] = []
    began, energy = time.perf_counter(), float(measured.square().sum())
    for sweep in range(sweeps):
        wrong = torch.zeros(())
        for number in random.permutation(len(scan)):
            row, column = (corners[number] - origin).tolist()
            seen = values[row : row + scan.size, column : column + scan.size]
            wave = torch.fft.fft2(seen * light, norm="ortho")
            amplitude = wave.abs()
            difference = measured[number] - amplitude
            wrong += difference.square().sum()
            change = torch.fft.ifft2(wave * (difference / (amplitude + physics.EPSILON)), norm="ortho")
            before = seen.clone()
            seen += object_step * light.conj() * change / light.abs().square().max()
            if sweep > 0:
                light = light + probe_step * before.conj() * change / before.abs().square().max()
        curve.append((time.perf_counter() - began, float(wrong) / energy))
    image = ObjectImage(
        values=values.numpy(), light=np.ones((height, width), np.float32), corner=(int(origin[0]), int(origin[1]))
    )
    return image, light[None], curve
