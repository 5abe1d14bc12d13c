"""A scan as its file holds it: patterns, probe, positions. Every doubt is either said or refused, in one sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from heimdall.errors import DataError
from heimdall.tasks.ptychography.config import PATTERN_SIZES
from heimdall.tasks.ptychography.npz import CONTRACT, Array, read_arrays

LARGEST_OBJECT_PIXELS = 2**28


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One scan, checked.

    ``patterns`` (M, N, N) float32: amplitudes (square root of counts), zero frequency at [N/2, N/2].
    ``probe`` (modes, N, N) complex64. ``x``, ``y`` (M,) float64: column and row of a window's centre in object pixels.
    ``index`` (M,): which scan a pattern belongs to. ``truth`` (H, W) complex64 where the file holds an object.
    ``whole_counts``: the squares of the amplitudes are whole numbers. ``notes``: what was assumed.
    """

    patterns: npt.NDArray[np.float32]
    probe: npt.NDArray[np.complex64]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    index: npt.NDArray[np.int64]
    truth: npt.NDArray[np.complex64] | None = None
    whole_counts: bool = True
    notes: tuple[str, ...] = ()
    digest: str = ""

    def __len__(self) -> int:
        return len(self.patterns)

    @property
    def size(self) -> int:
        """N, pixels along a pattern."""
        return int(self.patterns.shape[-1])

    def select(self, chosen: Array) -> Scan:
        """The scan of the patterns that ``chosen`` indexes."""
        return Scan(
            patterns=self.patterns[chosen],
            probe=self.probe,
            x=self.x[chosen],
            y=self.y[chosen],
            index=self.index[chosen],
            truth=self.truth,
            whole_counts=self.whole_counts,
            notes=self.notes,
            digest=self.digest,
        )


def read_scan(path: Path) -> Scan:
    """Read an NPZ scan, never with pickle.

    Raises :class:`~heimdall.errors.DataError` with one sentence that names the file, what is wrong and the mend.
    """
    arrays = read_arrays(path)
    notes: list[str] = []
    x, y = (_positions(path, name, arrays[name], notes) for name in ("xcoords", "ycoords"))
    if len(x) != len(y):
        raise DataError(f"{path} has {len(x)} xcoords but {len(y)} ycoords.", mend="Give one of each per pattern.")
    patterns, whole = _patterns(path, arrays["diff3d"], len(x), notes)
    probe = _probe(path, arrays["probeGuess"], patterns.shape[-1], notes)
    truth = _truth(path, arrays.get("objectGuess"), x, y)
    _check_extent(path, x, y)
    index = np.zeros(len(x), np.int64)
    if "scan_index" in arrays:
        index = np.asarray(arrays["scan_index"]).reshape(-1).astype(np.int64)
        if len(index) != len(x):
            raise DataError(f"{path} has {len(index)} entries in scan_index for {len(x)} patterns.")
    return Scan(
        patterns=patterns,
        probe=probe,
        x=x,
        y=y,
        index=index,
        truth=truth,
        whole_counts=whole,
        notes=tuple(notes),
        digest=_digest((patterns, probe, x, y)),
    )


def write_scan(path: Path, scan: Scan) -> Path:
    """Write ``scan`` as an NPZ file of the contract."""
    arrays: dict[str, Array] = {
        "diff3d": scan.patterns,
        "probeGuess": scan.probe[0] if len(scan.probe) == 1 else scan.probe,
        "xcoords": scan.x,
        "ycoords": scan.y,
        "scan_index": scan.index,
    }
    if scan.truth is not None:
        arrays["objectGuess"] = scan.truth
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def _positions(path: Path, name: str, values: Array, notes: list[str]) -> npt.NDArray[np.float64]:
    if values.ndim != 1:
        if values.size != max(values.shape, default=0):
            raise DataError(f"{name} in {path} has shape {values.shape}.", mend="Give one number per pattern.")
        notes.append(f"{name} of shape {values.shape} was read as a plain list")
    if values.dtype.kind == "c":
        raise DataError(f"{name} in {path} is complex; coordinates are real.")
    flat = values.reshape(-1).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(flat))
    if len(bad):
        raise DataError(
            f"{name} in {path} has {len(bad)} values that are not finite, the first at pattern {bad[0]}.",
            mend="Drop those patterns.",
        )
    return flat


def _patterns(path: Path, values: Array, count: int, notes: list[str]) -> tuple[npt.NDArray[np.float32], bool]:
    values = _pattern_axes(path, values, count, notes)
    size = values.shape[-1]
    if size not in PATTERN_SIZES:
        raise DataError(
            f"The patterns in {path} are {size} x {size} pixels.", mend="Crop or bin them to 64, 128 or 256."
        )
    if values.dtype.kind == "c":
        raise DataError(f"The patterns in {path} are complex.", mend="Give amplitudes, the square root of the counts.")
    _check_pixels(path, values)
    if values.dtype.kind in "biu":
        notes.append(f"whole numbers of type {values.dtype} were read as counts, their square root as amplitude")
        return np.sqrt(values.astype(np.float64)).astype(np.float32), True
    if float(values.max()) > 1 and bool(
        (values[:8] == np.round(values[:8])).all() and (values == np.round(values)).all()
    ):
        raise DataError(
            f"The patterns in {path} are all whole numbers of type {values.dtype}: counts, it seems, not amplitudes.",
            mend="Store np.sqrt(counts), or the counts with an integer type.",
        )
    squares = np.square(values[:: max(1, len(values) // 16)].astype(np.float64))
    # float32 keeps a square root to 6e-8 of its size
    whole = bool(squares.max() > 1) and bool((np.abs(squares - np.round(squares)) <= 1e-6 * squares + 1e-6).all())
    return np.ascontiguousarray(values, dtype=np.float32), whole


def _pattern_axes(path: Path, values: Array, count: int, notes: list[str]) -> Array:
    if values.ndim != 3 or values.size == 0:
        raise DataError(f"The patterns in {path} have shape {values.shape}.", mend=CONTRACT)
    patterns_first = values.shape[0] == count and values.shape[1] == values.shape[2]
    patterns_last = values.shape[2] == count and values.shape[0] == values.shape[1]
    if patterns_first:
        if patterns_last:
            notes.append(f"patterns of shape {values.shape} were read with the pattern number first")
        return values
    if patterns_last:
        notes.append(f"patterns of shape {values.shape} were read in the old order, pattern number last")
        return np.moveaxis(values, 2, 0)
    square = values.shape[1] == values.shape[2] or values.shape[0] == values.shape[1]
    if square:
        number = values.shape[0] if values.shape[1] == values.shape[2] else values.shape[2]
        raise DataError(
            f"{path} has {number} patterns but {count} coordinates.",
            mend="Give one xcoords and one ycoords per pattern.",
        )
    raise DataError(f"The patterns in {path} have shape {values.shape}: not square.", mend=CONTRACT)


def _check_pixels(path: Path, values: Array) -> None:
    for name, bad in (("not finite", ~np.isfinite(values)), ("negative", values < 0)):
        if bad.any():
            first = int(np.flatnonzero(bad.any(axis=(1, 2)))[0])
            raise DataError(
                f"The patterns in {path} have {int(bad.sum())} pixels that are {name}, the first in pattern {first}.",
                mend="Mask or drop them before training.",
            )
    dark = np.flatnonzero(~values.any(axis=(1, 2)))
    if len(dark):
        raise DataError(
            f"{len(dark)} patterns in {path} have no signal at all, the first is pattern {dark[0]}.", mend="Drop them."
        )


def _probe(path: Path, values: Array, size: int, notes: list[str]) -> npt.NDArray[np.complex64]:
    if values.ndim not in (2, 3) or values.shape[-2:] != (size, size) or values.size == 0:
        raise DataError(
            f"probeGuess in {path} has shape {values.shape} but the patterns are {size} x {size} pixels.",
            mend="The probe must have the patterns' size.",
        )
    if not np.isfinite(values).all() or not values.any():
        raise DataError(f"probeGuess in {path} is empty or holds values that are not finite.")
    if values.dtype.kind != "c":
        notes.append("a real probeGuess was read as a probe without phase")
    return np.ascontiguousarray(values.reshape(-1, size, size), dtype=np.complex64)


def _truth(path: Path, values: Array | None, x: Array, y: Array) -> npt.NDArray[np.complex64] | None:
    if values is None:
        return None
    if values.ndim != 2 or not np.isfinite(values).all():
        raise DataError(f"objectGuess in {path} has shape {values.shape} or values that are not finite.")
    height, width = values.shape
    outside = np.flatnonzero((x < 0) | (x > width - 1) | (y < 0) | (y > height - 1))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"{len(outside)} coordinates in {path} lie outside its {height} x {width} object, the first at "
            f"x = {x[first]:g}, y = {y[first]:g}.",
            mend="Coordinates are object pixels: x the column, y the row of the window's centre.",
        )
    return np.ascontiguousarray(values, dtype=np.complex64)


def _check_extent(path: Path, x: Array, y: Array) -> None:
    pixels = (np.ptp(x) + 512) * (np.ptp(y) + 512)
    if pixels > LARGEST_OBJECT_PIXELS:
        raise DataError(
            f"The coordinates in {path} span {np.ptp(x):.3g} x {np.ptp(y):.3g} pixels, more than an object can have.",
            mend="Coordinates are object pixels, not metres or encoder steps.",
        )


def _digest(arrays: Iterable[Array]) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
