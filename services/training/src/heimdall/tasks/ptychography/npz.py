"""The arrays of a scan file, read with suspicion: never a pickle, and never more memory than the file can fill."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heimdall.errors import DataError

Array = npt.NDArray[Any]

LARGEST_ARRAY_BYTES = 64 * 2**30
CONTRACT = "It needs diff3d (M, N, N), probeGuess (N, N), xcoords (M,) and ycoords (M,)."


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of the contract that ``path`` holds, by name; ``diffraction`` is taken for ``diff3d``.

    Raises :class:`~heimdall.errors.DataError` for a file that is not whole, lacks one, or holds anything but numbers.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.", mend="Give the path of an NPZ scan.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", mend="Write or copy it again.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_members(path, archive)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        reason = "is damaged" if zipfile.is_zipfile(path) else "is not an NPZ file (a zip of arrays)"
        raise DataError(f"{path} {reason}: {error}.", mend=CONTRACT) from error


def _read_members(path: Path, archive: zipfile.ZipFile) -> dict[str, Array]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if "diff3d" not in members and "diffraction" in members:
        members["diff3d"] = members["diffraction"]
    required = ("diff3d", "probeGuess", "xcoords", "ycoords")
    missing = [name for name in required if name not in members]
    if missing:
        found = ", ".join(sorted(members)) or "nothing"
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {found}.", mend=CONTRACT)
    wanted = (*required, "objectGuess", "scan_index")
    return {name: _read_member(path, archive, name, members[name]) for name in wanted if name in members}


def _read_member(path: Path, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Array:
    if info.file_size > LARGEST_ARRAY_BYTES:
        raise DataError(f"{name} in {path} claims {info.file_size} bytes, more than a scan can hold.")
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
            if dtype.hasobject:
                raise DataError(
                    f"{name} in {path} holds pickled Python objects, which are never loaded.",
                    mend="Save plain numeric arrays.",
                )
            # the header must not promise more than the archive holds: numpy would allocate it first
            if int(np.prod(shape, dtype=object)) * dtype.itemsize > info.file_size:
                raise DataError(f"{name} in {path} is cut short: its header promises more than the file holds.")
        with archive.open(info) as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{name} in {path} is not a readable array: {error}.") from error
    if array.dtype.kind not in "biufc":
        raise DataError(f"{name} in {path} is of type {array.dtype}, not numbers.")
    return array
