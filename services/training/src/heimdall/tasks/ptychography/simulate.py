"""Scans with a known truth: objects, probes, positions and photon noise, all from one seed."""

from __future__ import annotations

import importlib.resources

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.config import SimulationOptions
from heimdall.tasks.ptychography.scan import Scan

Real = npt.NDArray[np.float64]

DARKEST = 0.6  # amplitude where the object absorbs most
TEXTURES = ("brick.png", "grass.png", "gravel.png", "camera.png", "coins.png", "moon.png")


def simulate(options: SimulationOptions, stream: int = 0) -> Scan:
    """One scan; ``stream`` chooses among scans of different objects with the same probe.

    Positions are a raster of ``options.step`` with a jitter of a third of it, not on whole pixels. The amplitudes are
    square roots of Poisson counts.
    """
    random = np.random.default_rng([options.seed, stream])
    size, step = options.size, options.step or options.size / 8
    columns = int(np.ceil(np.sqrt(options.patterns)))
    grid = np.stack(np.divmod(np.arange(options.patterns), columns), axis=1) * step
    centres = grid + random.uniform(-step / 6, step / 6, grid.shape) + size / 2 + step
    shape = tuple(int(edge) for edge in np.ceil(centres.max(axis=0)) + size // 2 + 1)
    truth = make_object(options.kind, (shape[0], shape[1]), random, options.phase)
    # the probe belongs to the instrument, not to the object
    probe = physics.scale_probe(make_probe(options.probe, size, np.random.default_rng([options.seed, 2**20]))[None])
    counts = _counts(truth, probe, centres, options.photons, random)
    lit = counts.any(axis=(1, 2))
    return Scan(
        patterns=np.sqrt(counts[lit]).astype(np.float32),
        probe=probe,
        x=centres[lit, 1],
        y=centres[lit, 0],
        index=np.zeros(int(lit.sum()), np.int64),
        truth=truth,
    )


def _counts(
    truth: npt.NDArray[np.complex64],
    probe: npt.NDArray[np.complex64],
    centres: Real,
    photons: float,
    random: np.random.Generator,
) -> npt.NDArray[np.int64]:
    size = probe.shape[-1]
    corners, remainders = physics.split_positions(centres, size)
    patterns = []
    for chosen in np.array_split(np.arange(len(centres)), -(-len(centres) // 64)):
        seen = np.stack([truth[row : row + size, column : column + size] for row, column in corners[chosen]])
        probes = physics.shift_probe(torch.from_numpy(probe), torch.from_numpy(remainders[chosen]))
        wave = physics.far_field(torch.from_numpy(seen), probes)
        patterns.append(torch.fft.fftshift(physics.intensity(wave), dim=(-2, -1)).numpy())
    intensity = np.concatenate(patterns).astype(np.float64)
    return np.asarray(random.poisson(intensity * (photons / intensity.sum((1, 2)).mean())), np.int64)


def make_probe(kind: str, size: int, random: np.random.Generator) -> npt.NDArray[np.complex64]:
    """A probe (N, N): ``ideal``, a smooth disc with a flat phase; ``realistic``, a zone plate out of focus.

    The zone plate is an annular pupil with a central stop, a defocus that spreads its focus over half the window, and a
    little astigmatism and coma, drawn at random.
    """
    axis = (np.arange(size) - size // 2) / size
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    radius = np.hypot(rows, columns)
    if kind == "ideal":
        return _edge(0.22 - radius, 0.02).astype(np.complex64)
    pupil = _edge(0.24 - radius, 0.01) * _edge(radius - 0.08, 0.01)
    angle = np.arctan2(rows, columns)
    relative = radius / 0.24
    # a defocus phase of π a r² moves light by a r, in units of one window for r in cycles a pixel
    defocus = np.pi * size * 1.05 * radius**2
    aberration = 0.6 * relative**2 * np.cos(2 * (angle - random.uniform(0, np.pi)))
    aberration += 0.4 * relative**3 * np.cos(angle - random.uniform(0, 2 * np.pi))
    wave = np.fft.ifft2(np.fft.ifftshift(pupil * np.exp(1j * (defocus + aberration))))
    return np.fft.fftshift(wave).astype(np.complex64)


def make_object(
    kind: str, shape: tuple[int, int], random: np.random.Generator, phase: float
) -> npt.NDArray[np.complex64]:
    """An object (H, W): absorption and phase follow one picture (thickness), with a weak picture of its own each."""
    make = {"lines": _lines, "fields": _field, "textures": _texture}[kind]
    thickness = make(shape, random)
    absorbed = np.clip(thickness + 0.15 * (_field(shape, random) - 0.5), 0, 1)
    amplitude = 1 - (1 - DARKEST) * absorbed
    turned = phase * np.clip(thickness + 0.15 * (_field(shape, random) - 0.5), 0, 1)
    return np.asarray(amplitude * np.exp(1j * turned), np.complex64)


def _edge(distance: Real, width: float) -> Real:
    return 1 / (1 + np.exp(-np.clip(distance / width, -50, 50)))


def _lines(shape: tuple[int, int], random: np.random.Generator) -> Real:
    rows, columns = np.indices(shape, dtype=np.float64)
    picture = np.zeros(shape)
    for _ in range(max(8, shape[0] * shape[1] // 1500)):
        angle, width = random.uniform(0, np.pi), random.uniform(0.7, 2.5)
        middle = random.uniform(0, shape[0]), random.uniform(0, shape[1])
        along = (rows - middle[0]) * np.sin(angle) + (columns - middle[1]) * np.cos(angle)
        across = (rows - middle[0]) * np.cos(angle) - (columns - middle[1]) * np.sin(angle)
        line = _edge(width - np.abs(across), 0.4) * _edge(random.uniform(10, 80) - np.abs(along), 1.0)
        picture = np.maximum(picture, random.uniform(0.3, 1.0) * line)
    return picture


def _field(shape: tuple[int, int], random: np.random.Generator) -> Real:
    picture = ndimage.gaussian_filter(random.standard_normal(shape), 3, mode="wrap")
    return _spread(picture)


def _texture(shape: tuple[int, int], random: np.random.Generator) -> Real:
    from skimage.io import imread

    name = TEXTURES[int(random.integers(len(TEXTURES)))]
    image = imread(str(importlib.resources.files("skimage") / "data" / name)).astype(np.float64)
    edge = min(image.shape[:2])
    top, left = (int(random.integers(0, length - edge + 1)) for length in image.shape[:2])
    tile = image[top : top + edge, left : left + edge]
    zoom = [wanted / length for wanted, length in zip(shape, tile.shape, strict=True)]
    return _spread(ndimage.zoom(tile, zoom, order=3, mode="reflect"))


def _spread(picture: Real) -> Real:
    low, high = np.percentile(picture, [1, 99])
    return np.asarray(np.clip((picture - low) / (high - low), 0, 1), np.float64)
