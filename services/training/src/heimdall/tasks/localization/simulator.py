"""Simulated recordings: what stands in for field recordings, and says so.

A narrow-band FM voice signal is sent from a random place and received by every receiver of the scene through the
distance law, the terrain's shadow maps, residual fading and Rician multipath, in thermal noise. Each session has a
random stream of its own, drawn from (scene seed, 2, session), so a data set is the same however many threads write it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heimdall.errors import OutputError
from heimdall.tasks.localization.features import SAMPLES
from heimdall.tasks.localization.geometry import Array
from heimdall.tasks.localization.propagation import mean_gain
from heimdall.tasks.localization.recordings import Samples, write_recording
from heimdall.tasks.localization.scene import BOLTZMANN_DBM_PER_HZ, Scene

BLOCK = 32  # samples over which multipath is held constant: 0.17 ms, far below 1/Doppler
PATHS = 8  # scattered paths of the multipath, sum of sinusoids
VOICE_HZ = (300.0, 3000.0)


@dataclass(frozen=True)
class Session:
    """One simulated transmission."""

    position: Array  # (2,) km in the scene's plane
    transmit_power_dbm: float
    received_power_dbm: Array  # (receivers,) without noise
    samples: Samples  # (receivers, count), fractions of full scale
    full_scale_dbm: Array  # (receivers,)


def draw_session(scene: Scene, index: int, count: int = SAMPLES) -> Session:
    """Session ``index`` of the scene: place, power, fading, and ``count`` samples a receiver."""
    random = np.random.default_rng([scene.seed, 2, index])
    low, high = scene.box
    position = low + (high - low) * random.random(2)
    power = float(random.uniform(*scene.transmit_power_dbm))
    fading = scene.fading_db * random.standard_normal(len(scene.receivers))
    received = power + mean_gain(scene, position[None], with_maps=True)[0] - fading
    samples, full_scale = _receive(scene, received, count, random)
    return Session(position, power, received, samples, full_scale)


def _receive(scene: Scene, power_dbm: Array, count: int, random: np.random.Generator) -> tuple[Samples, Array]:
    receivers = len(scene.receivers)
    noise_dbm = (
        BOLTZMANN_DBM_PER_HZ
        + 10 * np.log10(scene.sample_rate_hz)
        + np.array([receiver.noise_figure_db for receiver in scene.receivers])
    )
    message = _fm_voice(scene.sample_rate_hz, count, random)
    channel = _channel(scene, count, random)
    amplitude = np.sqrt(10 ** (power_dbm / 10)).astype(np.float32)
    noise = random.standard_normal((receivers, 2 * count), dtype=np.float32).view(np.complex64)
    noise *= np.sqrt(10 ** (noise_dbm / 10) / 2).astype(np.float32)[:, None]
    volts = noise
    volts += (amplitude[:, None] * message) * channel
    parts = volts.view(np.float32)
    peak = np.maximum(parts.max(axis=1), -parts.min(axis=1))
    # Full scale is set as a gain control would: a whole number of dB above the largest sample
    full_scale = np.ceil(20 * np.log10(peak)) + 1.0
    volts *= (10 ** (-full_scale / 20)).astype(np.float32)[:, None]
    return volts, full_scale.astype(np.float64)


def _fm_voice(rate_hz: float, count: int, random: np.random.Generator) -> Samples:
    """Unit-power narrow-band FM, (count,): band-limited noise as the voice, peak deviation 2.5 to 5 kHz."""
    frequency = np.fft.rfftfreq(count, 1 / rate_hz)
    band = (frequency >= VOICE_HZ[0]) & (frequency <= VOICE_HZ[1])
    spectrum = np.zeros(len(frequency), np.complex128)
    # Voices fall by about 6 dB an octave
    spectrum[band] = (random.standard_normal(band.sum()) + 1j * random.standard_normal(band.sum())) / frequency[band]
    voice = np.fft.irfft(spectrum, count)
    voice /= np.abs(voice).max()
    deviation = random.uniform(2500.0, 5000.0)
    phase = 2 * np.pi * deviation / rate_hz * np.cumsum(voice)
    return np.asarray(np.exp(1j * phase), np.complex64)


def _channel(scene: Scene, count: int, random: np.random.Generator) -> Samples:
    """Carrier offset and Rician multipath, (receivers, count), of unit mean power over the recording.

    The mean is taken out because what is left of fading after averaging is the scene's own ``fading_db``.
    """
    receivers, blocks = len(scene.receivers), -(-count // BLOCK)
    time = np.arange(blocks) * (BLOCK / scene.sample_rate_hz)
    offset_hz = scene.frequency_hz * 1e-6 * random.uniform(-2, 2, (receivers, 1))
    line_of_sight = 10 ** (random.uniform(-10, 10, (receivers, 1)) / 10)
    doppler_hz = random.uniform(0.5, 8.0, (receivers, 1, 1)) * np.cos(2 * np.pi * random.random((receivers, PATHS, 1)))
    scattered = np.exp(2j * np.pi * (doppler_hz * time + random.random((receivers, PATHS, 1)))).sum(axis=1)
    fading = scattered / np.sqrt(PATHS) + np.sqrt(line_of_sight)
    fading /= np.sqrt((np.abs(fading) ** 2).mean(axis=1, keepdims=True))
    coarse = fading * np.exp(2j * np.pi * offset_hz * time)
    fine = np.exp(2j * np.pi * offset_hz * np.arange(BLOCK) / scene.sample_rate_hz)
    whole = coarse.astype(np.complex64)[:, :, None] * fine.astype(np.complex64)[:, None, :]
    return np.asarray(whole.reshape(receivers, -1)[:, :count], np.complex64)


def simulate(
    scene: Scene,
    folder: Path,
    sessions: int,
    *,
    first_session: int = 0,
    threads: int = 2,
    progress: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write ``sessions`` multi-channel recordings and ``scene.json``; the folder appears only when it is whole.

    Sessions are numbered from ``first_session``: sets of one scene whose numbers do not overlap share no session.

    Raises :class:`~heimdall.errors.OutputError` where the folder exists already, or the disk is full.
    """
    partial = folder.with_name(folder.name + ".partial")
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty.", mend="Choose another folder, or remove this one.")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        scene.save(partial)
        # The maps are a cached property: made by save() before the threads start
        with ThreadPoolExecutor(threads) as pool:
            numbers = range(first_session, first_session + sessions)
            for done, _ in enumerate(pool.map(lambda index: _write_session(scene, partial, index), numbers)):
                progress(done + 1)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(
            f"The simulated data set cannot be written to {folder}: {error.strerror}.",
            mend="Make room, or choose a folder that can be written.",
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _write_session(scene: Scene, folder: Path, index: int) -> None:
    session = draw_session(scene, index)
    latitude, longitude = scene.plane.to_degrees(session.position)
    name = f"session-{index:05d}"
    write_recording(
        folder / name,
        session.samples,
        session=name,
        receivers=scene.receivers,
        sample_rate_hz=scene.sample_rate_hz,
        frequency_hz=scene.frequency_hz,
        full_scale_dbm=session.full_scale_dbm,
        truth=(round(float(latitude), 7), round(float(longitude), 7)),
        power_dbm=round(session.transmit_power_dbm, 3),
    )
