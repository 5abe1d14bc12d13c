"""An iterative end to a network's start: gradient descent on object and probe through the same forward model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.scan import Scan
from heimdall.tasks.ptychography.stitch import ObjectImage, Stitcher

MOMENTUM = (0.9, 0.99)  # Adam's
WARM = 20  # steps until the rates are full: Adam's first steps are as long as its rate, whatever the gradient


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What refinement ends with. ``curve``, after each sweep: seconds, and Σ(|F|-A)²/ΣA² as its batches met it."""

    image: ObjectImage
    probe: Tensor  # (m, N, N)
    curve: list[tuple[float, float]]


class _Adam:
    """Adam for one complex tensor, in one pass over it; real and imaginary parts are numbers of their own."""

    def __init__(self, values: Tensor, rate: float) -> None:
        self.values, self.rate = values, rate
        self.parts = torch.view_as_real(values)
        self.optimizer = torch.optim.Adam([self.parts], lr=rate, betas=MOMENTUM, fused=True)

    def descend(self, gradient: Tensor, factor: float) -> None:
        self.parts.grad = torch.view_as_real(gradient)
        self.optimizer.param_groups[0]["lr"] = factor * self.rate
        self.optimizer.step()


class _Problem:
    """A scan, laid out for gradients: where each window lies in the flattened object, and how the probe moves."""

    def __init__(self, scan: Scan, device: torch.device) -> None:
        scale = physics.amplitude_scale(scan.patterns)
        self.measured = physics.to_corner(torch.from_numpy(scan.patterns) * scale).to(device).contiguous()
        self.size = scan.size
        self.corners, remainders = physics.split_positions(np.column_stack([scan.y, scan.x]), scan.size)
        self.moves = bool(np.abs(remainders).max() > 1e-3)
        self.remainders = torch.from_numpy(remainders).to(device)
        self.origin = self.corners.min(axis=0)
        height, width = self.corners.max(axis=0) - self.origin + scan.size
        self.shape = (int(height), int(width))
        self.places = torch.from_numpy(self.corners - self.origin).to(device)
        steps = torch.arange(scan.size, device=device)
        self.window = steps[:, None] * int(width) + steps

    def ramps(self, batch: Tensor) -> Tensor | None:
        """What moves the probe's spectrum to each position of ``batch``; none where all positions are whole."""
        return physics.ramps(self.remainders[batch], self.size) if self.moves else None

    def seen(self, values: Tensor, batch: Tensor) -> Tensor:
        """Windows (b, N, N) of the flattened object ``values`` (H W,)."""
        windows = values.reshape(self.shape).unfold(0, self.size, 1).unfold(1, self.size, 1)
        rows, columns = self.places[batch].unbind(1)
        found: Tensor = windows[rows, columns]
        return found

    def spread(self, patches: Tensor, batch: Tensor) -> Tensor:
        """Sum (H W,) of ``patches`` (b, N, N) put where :meth:`seen` takes them from."""
        rows, columns = self.places[batch].unbind(1)
        pixels = (rows * self.shape[1] + columns)[:, None, None] + self.window
        total = torch.zeros(self.shape[0] * self.shape[1], dtype=patches.dtype, device=patches.device)
        return total.index_add_(0, pixels.flatten(), patches.flatten())


def _moved(probe: Tensor, ramps: Tensor | None) -> Tensor:
    """Probes (b, m, N, N), or the one probe (1, m, N, N) where nothing moves."""
    if ramps is None:
        return probe[None]
    moved: Tensor = torch.fft.ifft2(torch.fft.fft2(probe) * ramps)
    return moved


def _moved_back(gradient: Tensor, ramps: Tensor | None) -> Tensor:
    """Gradient (m, N, N) of the probe at rest from those (b, m, N, N) of the moved ones: the transpose of moving."""
    if ramps is None:
        return gradient.sum(0)
    # the sum comes before the inverse transform: one of them, not one a pattern
    back: Tensor = torch.fft.ifft2((torch.fft.fft2(gradient) * ramps.conj()).sum(0))
    return back


def refine(
    scan: Scan,
    probe: Tensor,
    sweeps: int,
    *,
    start: ObjectImage | None = None,
    batch_size: int = 8,
    object_rate: float = 0.05,
    probe_rate: float = 0.1,
    seed: int = 0,
) -> Refined:
    """``sweeps`` of mini-batch Adam on Σ(|F| - X)² over object and probe at once, from ``start`` or a flat object.

    ``probe`` (m, N, N) with Σ|P|² = (N/2)². The gradients are written out (Wirtinger): they cost one inverse FFT a
    pattern, as much as one step of any iterative method. Rates rise over the first steps, lest a good start be spoilt,
    and fall along a cosine. ``probe_rate=0`` keeps the probe.
    """
    problem = _Problem(scan, probe.device)
    random = torch.Generator().manual_seed(seed)
    values = _start(problem, start).to(probe.device)
    adam = _Adam(values, object_rate), _Adam(probe.clone(), probe_rate)
    curve: list[tuple[float, float]] = []
    steps, total, began = 0, sweeps * -(-len(scan) // batch_size), time.perf_counter()
    for _ in range(sweeps):
        wrong, energy = torch.zeros((), device=probe.device), torch.zeros((), device=probe.device)
        for batch in torch.split(torch.randperm(len(scan), generator=random), batch_size):
            factor = min(1.0, (steps + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * steps / total))
            measured = problem.measured[batch]
            wrong += _descend(problem, *adam, batch, measured, factor)
            energy += measured.square().sum()
            steps += 1
        curve.append((time.perf_counter() - began, float(wrong / energy)))
    return Refined(image=_image(problem, *adam, scan.size), probe=adam[1].values, curve=curve)


def _descend(problem: _Problem, objects: _Adam, probe: _Adam, batch: Tensor, measured: Tensor, factor: float) -> Tensor:
    seen, ramps = problem.seen(objects.values, batch), problem.ramps(batch)
    probes = _moved(probe.values, ramps)
    wave = physics.far_field(seen, probes)
    amplitude = torch.sqrt(physics.intensity(wave))
    difference = amplitude - measured
    wave *= (difference / (amplitude + physics.EPSILON)).unsqueeze(-3)
    back = torch.fft.ifft2(wave, norm="ortho")
    objects.descend(problem.spread((back * probes.conj()).sum(-3), batch), factor)
    if probe.rate > 0:
        probe.descend(_moved_back(back.mul_(seen.conj().unsqueeze(-3)), ramps), factor)
    return difference.square().sum()


def _start(problem: _Problem, start: ObjectImage | None) -> Tensor:
    height, width = problem.shape
    flat = np.ones((height, width), np.complex64)
    if start is not None:
        # where both have pixels
        row, column = np.array(start.corner) - problem.origin
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + start.values.shape[0], height), min(column + start.values.shape[1], width)
        flat[top:bottom, left:right] = start.values[top - row : bottom - row, left - column : right - column]
    return torch.from_numpy(flat.reshape(-1))


def _image(problem: _Problem, objects: _Adam, probe: _Adam, size: int) -> ObjectImage:
    light = physics.intensity(probe.values).cpu().numpy()
    stitcher = Stitcher(problem.corners, size)
    ones = np.ones((size, size), np.complex64)
    for corner in problem.corners:
        stitcher.add(ones[None], light[None], corner[None])
    empty = stitcher.image()
    values = objects.values.reshape(problem.shape).cpu().numpy()
    return ObjectImage(values=values, light=empty.light, corner=empty.corner)


def scan_misfit(scan: Scan, image: ObjectImage, probe: Tensor) -> npt.NDArray[np.float32]:
    """Σ(|F| - A)² / ΣA² of each pattern (M,) for one object and one probe (m, N, N), whatever the scan's own scale."""
    parts = [physics.misfit(predicted, measured).cpu() for predicted, measured in _predictions(scan, image, probe)]
    return torch.cat(parts).numpy()


def best_scale(scan: Scan, image: ObjectImage, probe: Tensor) -> float:
    """The factor on the object that makes Σ(|F| - A)² over the whole scan least."""
    products, squares = 0.0, 1e-30
    for predicted, measured in _predictions(scan, image, probe):
        products += float((torch.sqrt(predicted) * measured).sum())
        squares += float(predicted.sum())
    return products / squares


@torch.no_grad()
def _predictions(scan: Scan, image: ObjectImage, probe: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    problem = _Problem(scan, probe.device)
    values = _start(problem, image).to(probe.device)
    for batch in torch.split(torch.arange(len(scan)), 32):
        wave = physics.far_field(problem.seen(values, batch), _moved(probe, problem.ramps(batch)))
        yield physics.intensity(wave), problem.measured[batch]
