"""SigMF recordings: what a session looks like on disk, written and read with the ``sigmf`` package.

A session is one file of ``core:num_channels`` channels, or one single-channel file a receiver. Beside the core fields
the extension ``heimdall`` (version 1.0.0, optional) keeps:

| field (global) | meaning |
|---|---|
| ``heimdall:session`` | name of the session; single-channel files of one session share it |
| ``heimdall:receivers`` | one object a channel: name, latitude, longitude, altitude_m, gain_dbi, noise_figure_db |
| ``heimdall:full_scale_dbm`` | one number a channel: power in dBm of a complex tone of amplitude 1.0 (full scale) |
| ``heimdall:transmitter`` | the truth, where known: ``geolocation`` (GeoJSON point), ``power_dbm`` |

Samples are fractions of full scale, so received power survives 16-bit integers: dBm = 10 log₁₀(mean|x|²) + full scale.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from heimdall.errors import DataError, OutputError
from heimdall.tasks.localization.scene import Receiver

Samples = npt.NDArray[np.complex64]

EXTENSION = {"name": "heimdall", "version": "1.0.0", "optional": True}
DATATYPES = {"ci16_le": 4, "cf32_le": 8}  # bytes a complex sample
META, DATA = ".sigmf-meta", ".sigmf-data"
INTEGER_SCALE = 32768.0


@dataclass(frozen=True)
class Recording:
    """The metadata of one SigMF file."""

    meta: Path
    session: str
    receivers: tuple[Receiver, ...]
    full_scale_dbm: tuple[float, ...]
    sample_rate_hz: float
    sample_count: int  # complex samples a channel
    truth: tuple[float, float] | None  # latitude, longitude
    checksum: str  # SHA-512 of the samples; empty where the file states none

    @property
    def data(self) -> Path:
        """The file with the samples."""
        return self.meta.with_suffix(DATA)


def write_recording(
    base: Path,
    samples: Samples,
    *,
    session: str,
    receivers: tuple[Receiver, ...],
    sample_rate_hz: float,
    frequency_hz: float,
    full_scale_dbm: npt.NDArray[np.float64],
    truth: tuple[float, float] | None = None,
    power_dbm: float | None = None,
    datatype: str = "ci16_le",
    validate: bool = False,
) -> Path:
    """Write (channels, count) samples, as fractions of full scale, to ``base`` .sigmf-data and .sigmf-meta.

    Raises :class:`~heimdall.errors.OutputError` where the disk is full or the folder cannot be written.
    """
    from sigmf import SigMFFile

    interleaved = np.ascontiguousarray(samples.T).view(np.float32)
    if datatype == "ci16_le":
        stored = np.clip(np.rint(interleaved * INTEGER_SCALE), -INTEGER_SCALE, INTEGER_SCALE - 1).astype("<i2")
    else:
        stored = interleaved.astype("<f4")
    information: dict[str, Any] = {
        "core:datatype": datatype,
        "core:num_channels": len(samples),
        "core:sample_rate": sample_rate_hz,
        "core:extensions": [EXTENSION],
        "heimdall:session": session,
        "heimdall:receivers": [receiver.model_dump() for receiver in receivers],
        "heimdall:full_scale_dbm": [float(value) for value in full_scale_dbm],
    }
    if len(receivers) == 1:
        information["core:geolocation"] = _point(receivers[0].latitude, receivers[0].longitude, receivers[0].altitude_m)
    if truth is not None:
        information["heimdall:transmitter"] = {"geolocation": _point(*truth)}
        if power_dbm is not None:
            information["heimdall:transmitter"]["power_dbm"] = power_dbm
    data, meta = Path(f"{base}{DATA}"), Path(f"{base}{META}")
    try:
        stored.tofile(data)
        file = SigMFFile(data_file=str(data), global_info=information)
        file.add_capture(0, {"core:frequency": frequency_hz})
        file.tofile(str(meta), skip_validate=not validate, overwrite=True)
    except OSError as error:
        raise OutputError(f"{data} cannot be written: {error.strerror or error}.", mend="Make room.") from error
    return meta


def _point(latitude: float, longitude: float, *altitude_m: float) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [longitude, latitude, *altitude_m]}


def read_metadata(meta: Path, least_samples: int) -> Recording:
    """Metadata of one recording, checked against the size of its samples' file.

    Raises :class:`~heimdall.errors.DataError` that names the file and the mend.
    """
    try:
        information = json.loads(meta.read_text(encoding="utf-8"))["global"]
        datatype = str(information["core:datatype"])
        channels = int(information.get("core:num_channels", 1))
        rate = float(information["core:sample_rate"])
        described = information.get("heimdall:receivers") or [_receiver_from_core(information, meta)]
        receivers = tuple(Receiver.model_validate(receiver) for receiver in described)
        truth = _truth(information.get("heimdall:transmitter"))
        full_scale = tuple(float(v) for v in information.get("heimdall:full_scale_dbm", [0.0] * channels))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ValidationError) as error:
        raise DataError(
            f"{meta} is not the metadata of a SigMF recording ({type(error).__name__}).",
            mend="Copy or record it again, or remove it.",
        ) from error
    if datatype not in DATATYPES:
        raise DataError(f"{meta} has datatype {datatype}.", mend=f"Convert it to one of: {', '.join(DATATYPES)}.")
    if not channels == len(receivers) == len(full_scale):
        raise DataError(
            f"{meta} has {channels} channels, but describes {len(receivers)} receivers "
            f"and {len(full_scale)} full-scale levels.",
            mend="Give heimdall:receivers and heimdall:full_scale_dbm one entry a channel.",
        )
    count = _sample_count(meta.with_suffix(DATA), DATATYPES[datatype] * channels, least_samples)
    return Recording(
        meta=meta,
        session=str(information.get("heimdall:session", meta.name.removesuffix(META))),
        receivers=receivers,
        full_scale_dbm=full_scale,
        sample_rate_hz=rate,
        sample_count=count,
        truth=truth,
        checksum=str(information.get("core:sha512", "")),
    )


def _sample_count(data: Path, bytes_a_sample: int, least: int) -> int:
    if not data.exists():
        raise DataError(f"{data} is missing.", mend=f"Copy it beside its {META} file, or remove that file.")
    size = data.stat().st_size
    count, rest = divmod(size, bytes_a_sample)
    if rest or count < least:
        raise DataError(
            f"{data} is truncated: {size} bytes where at least {least * bytes_a_sample} are needed, "
            f"in steps of {bytes_a_sample}.",
            mend="Copy or record it again, or remove the session.",
        )
    return count


def _receiver_from_core(information: dict[str, Any], meta: Path) -> dict[str, Any]:
    longitude, latitude, *altitude = information["core:geolocation"]["coordinates"]
    name = str(information.get("core:recorder") or information.get("core:hw") or meta.name.removesuffix(META))
    return {
        "name": name,
        "latitude": latitude,
        "longitude": longitude,
        "altitude_m": altitude[0] if altitude else 0.0,
    }


def _truth(transmitter: dict[str, Any] | None) -> tuple[float, float] | None:
    if not transmitter:
        return None
    longitude, latitude = (float(value) for value in transmitter["geolocation"]["coordinates"][:2])
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        raise ValueError("position off the globe")
    return latitude, longitude


def read_samples(recording: Recording, count: int) -> Samples:
    """The first ``count`` samples, (channels, count), as fractions of full scale; the checksum is checked.

    Raises :class:`~heimdall.errors.DataError` for samples that do not match their checksum and for NaN or infinity.
    """
    import sigmf
    from sigmf.error import SigMFError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = sigmf.fromfile(str(recording.meta)).read_samples(0, count)
    except (SigMFError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{recording.data} is corrupt: its samples do not match its metadata.",
            mend="Copy or record it again, or remove the session.",
        ) from error
    samples = np.ascontiguousarray(np.asarray(values, np.complex64).reshape(count, -1).T)
    if not np.isfinite(samples.view(np.float32)).all():
        raise DataError(
            f"{recording.data} holds samples that are not numbers.", mend="Record it again, or remove the session."
        )
    return samples
