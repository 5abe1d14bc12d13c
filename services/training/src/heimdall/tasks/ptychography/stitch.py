"""Patches to one image: each window goes back to where it was cut, weighted with the light that fell on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class ObjectImage:
    """A reconstructed object. ``values`` (H, W) complex64; ``corner``: (row, column) of values[0, 0] in object pixels.

    ``light`` (H, W): the probe's intensity summed over the scan, zero where nothing is known.
    """

    values: npt.NDArray[np.complex64]
    light: npt.NDArray[np.float32]
    corner: tuple[int, int]

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Object row of each line of :attr:`values`."""
        return np.arange(self.corner[0], self.corner[0] + self.values.shape[0])

    @property
    def columns(self) -> npt.NDArray[np.int64]:
        """Object column of each column of :attr:`values`."""
        return np.arange(self.corner[1], self.corner[1] + self.values.shape[1])

    def scanned(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[slice, slice]:
        """The box between the outermost window centres, where the overlap is full."""
        top, left = self.corner
        return (
            slice(max(0, int(np.ceil(y.min())) - top), int(np.floor(y.max())) - top + 1),
            slice(max(0, int(np.ceil(x.min())) - left), int(np.floor(x.max())) - left + 1),
        )


class Stitcher:
    """Collects patches (S, S) at their corners, in object pixels; any order, any number of calls."""

    def __init__(self, corners: npt.NDArray[np.int64], size: int) -> None:
        """Room for patches of ``size`` pixels at any of ``corners`` (M, 2), (row, column)."""
        self.origin, self.size = corners.min(axis=0), size
        shape = tuple(corners.max(axis=0) - self.origin + size)
        self._sum = np.zeros(shape, np.complex128)
        self._light = np.zeros(shape, np.float64)

    def add(
        self,
        patches: npt.NDArray[np.complex64],
        light: npt.NDArray[np.float32],
        corners: npt.NDArray[np.int64],
    ) -> None:
        """Patches (B, S, S), the light (B, S, S) on them, their corners (B, 2)."""
        for patch, weight, (row, column) in zip(patches, light, corners - self.origin, strict=True):
            window = (slice(row, row + self.size), slice(column, column + self.size))
            self._sum[window] += patch * weight
            self._light[window] += weight

    def image(self) -> ObjectImage:
        """O = Σ w O_k / Σ w; 1 where no light ever fell."""
        floor = 1e-4 * self._light.max()
        return ObjectImage(
            values=((self._sum + floor) / (self._light + floor)).astype(np.complex64),
            light=self._light.astype(np.float32),
            corner=(int(self.origin[0]), int(self.origin[1])),
        )
