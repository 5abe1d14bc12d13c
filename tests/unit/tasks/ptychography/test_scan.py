"""What a scan file may look like, and what is refused in one sentence."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heimdall.errors import DataError
from heimdall.tasks.ptychography.scan import read_scan, write_scan

Arrays = dict[str, Any]


def arrays(count: int = 6, size: int = 64) -> Arrays:
    random = np.random.default_rng(0)
    return {
        "diff3d": np.sqrt(random.poisson(30.0, (count, size, size))).astype(np.float32),
        "probeGuess": np.full((size, size), 0.5 + 0.5j, np.complex64),
        "xcoords": np.linspace(40, 90, count),
        "ycoords": np.linspace(50, 80, count),
    }


def stored(folder: Path, content: Arrays) -> Path:
    path = folder / "scan.npz"
    np.savez(path, **content)
    return path


def test_contract_file_is_read_without_a_remark(tmp_path: Path) -> None:
    content = arrays()
    scan = read_scan(stored(tmp_path, content))
    np.testing.assert_array_equal(scan.patterns, content["diff3d"])
    np.testing.assert_array_equal(scan.x, content["xcoords"])
    np.testing.assert_array_equal(scan.y, content["ycoords"])
    assert scan.probe.shape == (1, 64, 64)
    assert scan.notes == ()
    assert scan.whole_counts


def test_written_scan_is_read_back(tmp_path: Path, scan: Any) -> None:
    again = read_scan(write_scan(tmp_path / "new" / "scan.npz", scan))
    np.testing.assert_array_equal(again.patterns, scan.patterns)
    np.testing.assert_array_equal(again.probe, scan.probe)
    np.testing.assert_array_equal(again.truth, scan.truth)


ACCEPTED: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "diffraction for diff3d": (lambda a: a.update(diffraction=a.pop("diff3d")), ""),
    "pattern number last": (lambda a: a.update(diff3d=np.moveaxis(a["diff3d"], 0, 2)), "old order"),
    "float64 and complex128": (
        lambda a: a.update(diff3d=a["diff3d"].astype(np.float64), probeGuess=a["probeGuess"].astype(np.complex128)),
        "",
    ),
    "counts of uint8": (lambda a: a.update(diff3d=np.rint(a["diff3d"] ** 2).astype(np.uint8)), "read as counts"),
    "one probe mode in a stack": (lambda a: a.update(probeGuess=a["probeGuess"][None]), ""),
    "real probe": (lambda a: a.update(probeGuess=np.ones((64, 64))), "without phase"),
    "coordinates in a column": (lambda a: a.update(xcoords=a["xcoords"][:, None]), "plain list"),
    "nominal positions and scan numbers": (
        lambda a: a.update(xcoords_start=a["xcoords"], scan_index=np.arange(6)),
        "",
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_unambiguous_variant_is_accepted_and_said(tmp_path: Path, name: str) -> None:
    change, said = ACCEPTED[name]
    content = arrays()
    wanted = content["diff3d"]
    change(content)
    scan = read_scan(stored(tmp_path, content))
    np.testing.assert_allclose(scan.patterns, wanted, rtol=1e-6)
    assert said in "; ".join(scan.notes)
    assert bool(said) == bool(scan.notes)


def test_two_probe_modes_are_kept(tmp_path: Path) -> None:
    content = arrays()
    content["probeGuess"] = np.stack([content["probeGuess"], 0.1j * content["probeGuess"]])
    assert read_scan(stored(tmp_path, content)).probe.shape == (2, 64, 64)


def planted(key: str, place: tuple[int, ...], value: float) -> Callable[[Arrays], Any]:
    def change(content: Arrays) -> None:
        content[key] = content[key].copy()
        content[key][place] = value

    return change


REFUSED: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "NaN pixel": (planted("diff3d", (3, 5, 6), np.nan), "1 pixels that are not finite, the first in pattern 3"),
    "infinite pixel": (planted("diff3d", (2, 0, 0), np.inf), "not finite, the first in pattern 2"),
    "negative pixel": (planted("diff3d", (4, 1, 1), -0.1), "1 pixels that are negative, the first in pattern 4"),
    "more coordinates than patterns": (
        lambda a: a.update(xcoords=np.arange(9.0), ycoords=np.arange(9.0)),
        "6 patterns but 9 coordinates",
    ),
    "fewer coordinates than patterns": (
        lambda a: a.update(xcoords=np.arange(4.0), ycoords=np.arange(4.0)),
        "6 patterns but 4 coordinates",
    ),
    "x and y of different number": (lambda a: a.update(ycoords=np.arange(5.0)), "6 xcoords but 5 ycoords"),
    "missing keys": (
        lambda a: (a.pop("diff3d"), a.pop("xcoords"), a.update(other=np.ones(3))),
        "lacks diff3d, xcoords; it holds other, probeGuess, ycoords",
    ),
    "not square": (lambda a: a.update(diff3d=a["diff3d"][:, :, :60]), "not square"),
    "odd size": (
        lambda a: a.update(diff3d=a["diff3d"][:, :50, :50], probeGuess=a["probeGuess"][:50, :50]),
        "50 x 50 pixels",
    ),
    "one pattern without a stack": (lambda a: a.update(diff3d=a["diff3d"][0]), "shape (64, 64)"),
    "counts given as amplitudes": (
        lambda a: a.update(diff3d=np.rint(a["diff3d"] ** 2).astype(np.float32)),
        "whole numbers of type float32",
    ),
    "complex patterns": (lambda a: a.update(diff3d=a["diff3d"] + 0j), "complex"),
    "dark pattern": (lambda a: planted("diff3d", (1,), 0.0)(a), "no signal at all, the first is pattern 1"),
    "probe of another size": (lambda a: a.update(probeGuess=np.ones((32, 32), complex)), "shape (32, 32)"),
    "probe with NaN": (planted("probeGuess", (0, 0), np.nan), "not finite"),
    "empty probe": (lambda a: a.update(probeGuess=np.zeros((64, 64), complex)), "empty"),
    "coordinate that is not finite": (planted("xcoords", (2,), np.nan), "xcoords in"),
    "coordinates outside the object": (
        lambda a: a.update(objectGuess=np.ones((100, 60), np.complex64)),
        "lie outside its 100 x 60 object",
    ),
    "coordinates in nanometres": (lambda a: a.update(xcoords=np.linspace(0, 5e6, 6)), "not metres"),
    "pickled objects": (
        lambda a: a.update(xcoords=np.array([{"a": 1}] * 6, dtype=object)),
        "pickled Python objects",
    ),
    "text for numbers": (lambda a: a.update(xcoords=np.array(["a"] * 6)), "not numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    change, said = REFUSED[name]
    content = arrays()
    change(content)
    path = stored(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_scan(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty (0 bytes)"), (b"no zip at all", "is not an NPZ file"), (None, "There is no file")],
)
def test_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "scan.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said.replace("(", r"\(").replace(")", r"\)")):
        read_scan(path)


def test_plain_npy_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    np.save(path, np.ones((3, 64, 64)))
    with pytest.raises(DataError, match="is not an NPZ file"):
        read_scan(path)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_file_that_is_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    path = stored(tmp_path, arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError):
        read_scan(path)


def test_flipped_byte_inside_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, arrays())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged"):
        read_scan(path)


def test_header_that_promises_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9000000, 64, 64), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    lie = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    np.savez(path, **{key: value for key, value in arrays().items() if key != "diff3d"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("diff3d.npy", lie)
    with pytest.raises(DataError, match="cut short"):
        read_scan(path)
