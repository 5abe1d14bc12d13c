"""A data set: the sessions of a folder, checked as a whole, and their features, computed once and cached."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from heimdall.errors import DataError, OutputError
from heimdall.tasks.localization.features import BANDS, FEATURE_VERSION, FRAMES, SAMPLE_RATE_HZ, SAMPLES, band_powers
from heimdall.tasks.localization.geometry import Array
from heimdall.tasks.localization.recordings import META, Recording, Samples, read_metadata, read_samples
from heimdall.tasks.localization.scene import Receiver, Scene

Features = npt.NDArray[np.float32]
# What fits a processor's cache is four times as fast there; a GPU likes more
SESSIONS_AT_ONCE = {"cpu": 4, "cuda": 64}
LEAST_RECEIVERS = 3
MEND = "Check the path; to train on a simulated set, leave --data out."


@dataclass(frozen=True)
class Session:
    """One transmission: its recordings in the order of the data set's receivers."""

    name: str
    recordings: tuple[Recording, ...]

    @property
    def truth(self) -> tuple[float, float] | None:
        """Latitude and longitude of the transmitter, where known."""
        return next((recording.truth for recording in self.recordings if recording.truth), None)


@dataclass(frozen=True)
class Dataset:
    """Sessions in the order of their names, all from the same receivers."""

    folder: Path
    receivers: tuple[Receiver, ...]
    sessions: tuple[Session, ...]
    digest: str  # sha256 over names, metadata and the samples' checksums

    @cached_property
    def truths(self) -> Array:
        """(sessions, 2) latitude and longitude in degrees.

        Raises :class:`~heimdall.errors.DataError` where a session has none.
        """
        for session in self.sessions:
            if session.truth is None:
                raise DataError(
                    f"{session.recordings[0].meta} does not say where the transmitter stood.",
                    mend="Add heimdall:transmitter to its global fields, or remove the session.",
                )
        return np.array([session.truth for session in self.sessions], np.float64)

    @cached_property
    def scene(self) -> Scene | None:
        """The scene of simulated data; None for field data."""
        return Scene.load(self.folder)

    def features(self, cache: Path, progress: Callable[[int], None] = lambda _: None) -> Features:
        """(sessions, receivers, 128, 32) float32 dB, memory-mapped read-only from a file in ``cache``.

        Raises :class:`~heimdall.errors.DataError` for the first recording that is corrupt or holds NaN.
        """
        path = cache / "features" / f"{self.digest[:32]}-v{FEATURE_VERSION}.npy"
        if not path.exists():
            try:
                self._extract(path, progress)
            except OSError as error:
                raise OutputError(
                    f"Features cannot be written to {path}: {error.strerror or error}.", mend="Make room."
                ) from error
        features: Features = np.load(path, mmap_mode="r", allow_pickle=False)
        return features

    def _extract(self, path: Path, progress: Callable[[int], None]) -> None:
        import torch

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        size = SESSIONS_AT_ONCE[device.type]
        shape = (len(self.sessions), len(self.receivers), BANDS, FRAMES)
        try:
            table = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
            with ThreadPoolExecutor(2) as pool:
                for start in range(0, len(self.sessions), size):
                    batch = self.sessions[start : start + size]
                    samples = torch.from_numpy(np.stack(list(pool.map(_session_samples, batch)))).to(device)
                    full_scale = torch.tensor([_full_scale(session) for session in batch], device=device)
                    table[start : start + len(batch)] = band_powers(samples, full_scale).cpu().numpy()
                    progress(start + len(batch))
            table.flush()
            del table
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _session_samples(session: Session) -> Samples:
    return np.concatenate([read_samples(recording, SAMPLES) for recording in session.recordings])


def _full_scale(session: Session) -> list[float]:
    return [level for recording in session.recordings for level in recording.full_scale_dbm]


def open_dataset(folder: Path) -> Dataset:
    """The data set in ``folder`` and its sub-folders.

    Reads metadata and sizes only; samples are checked when features are made.

    Raises :class:`~heimdall.errors.DataError`: no folder, no recordings, a truncated or damaged recording, another
    sample rate, fewer than three receivers, or sessions whose receivers differ.
    """
    if not folder.is_dir():
        raise DataError(f"There is no data folder {folder}.", mend=MEND)
    metas = sorted(folder.rglob(f"*{META}"))
    if not metas:
        raise DataError(
            f"The data folder {folder} holds no SigMF recordings (*{META}).",
            mend=MEND,
        )
    groups: dict[str, list[Recording]] = defaultdict(list)
    for meta in metas:
        recording = read_metadata(meta, SAMPLES)
        if recording.sample_rate_hz != SAMPLE_RATE_HZ:
            raise DataError(
                f"{meta} has a sample rate of {recording.sample_rate_hz:g} Hz.",
                mend=f"Resample it to {SAMPLE_RATE_HZ:g} Hz.",
            )
        groups[recording.session].append(recording)
    sessions = tuple(
        Session(name, tuple(sorted(recordings, key=lambda item: item.receivers[0].name)))
        for name, recordings in sorted(groups.items())
    )
    receivers = _common_receivers(sessions)
    return Dataset(folder, receivers, sessions, _digest(folder, sessions))


def _session_receivers(session: Session) -> tuple[Receiver, ...]:
    return tuple(receiver for recording in session.recordings for receiver in recording.receivers)


def _common_receivers(sessions: tuple[Session, ...]) -> tuple[Receiver, ...]:
    first = _session_receivers(sessions[0])
    if len(first) < LEAST_RECEIVERS:
        raise DataError(
            f"{sessions[0].recordings[0].meta} belongs to a session of {len(first)} receivers; "
            f"a position needs at least {LEAST_RECEIVERS}.",
            mend="Add the recordings of the other receivers.",
        )
    names = [receiver.name for receiver in first]
    for session in sessions[1:]:
        others = [receiver.name for receiver in _session_receivers(session)]
        if others != names:
            raise DataError(
                f"{session.recordings[0].meta}: wrong number of receivers or other receivers, {len(others)} "
                f"({', '.join(others)}) where the first session has {len(names)} ({', '.join(names)}).",
                mend="Add what is missing, or remove the session.",
            )
    return first


def _digest(folder: Path, sessions: tuple[Session, ...]) -> str:
    # The metadata carries the samples' own checksum, which is checked when they are read
    total = hashlib.sha256()
    for recording in (recording for session in sessions for recording in session.recordings):
        total.update(recording.meta.relative_to(folder).as_posix().encode())
        total.update(hashlib.sha256(recording.meta.read_bytes()).digest())
        if not recording.checksum:
            total.update(hashlib.sha256(recording.data.read_bytes()).digest())
    return total.hexdigest()
