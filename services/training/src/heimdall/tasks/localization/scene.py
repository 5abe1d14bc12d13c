"""The scene: receivers, band, propagation and terrain. Drawn from one seed, kept in one JSON file.

The terrain's shadowing S_i(r) is a Gaussian random field per receiver, correlation exp(-Δ/d_corr) (Gudmundson 1991).
It is made from the seed by circulant embedding and rounded to 0.01 dB, so that a scene file of a few lines gives the
same maps again bit for bit; the file carries their checksum.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heimdall.errors import DataError
from heimdall.tasks.localization.geometry import Array, LocalPlane

SCENE_FILE = "scene.json"
BOLTZMANN_DBM_PER_HZ = -173.975  # 10 log10(k · 290 K / 1 mW)


class Receiver(BaseModel):
    """A receiver as a recording describes it."""

    model_config = ConfigDict(frozen=True)

    name: str
    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-180, le=180)
    altitude_m: float = 0.0
    gain_dbi: float = 0.0
    noise_figure_db: float = 7.0


ITALY = (
    Receiver(name="Giaveno", latitude=45.020, longitude=7.290, altitude_m=600, noise_figure_db=6),
    Receiver(name="Montanaro", latitude=45.234, longitude=7.857, altitude_m=300, noise_figure_db=7),
    Receiver(name="Torino", latitude=45.044, longitude=7.672, altitude_m=250, noise_figure_db=9),
    Receiver(name="Coazze", latitude=45.030, longitude=7.270, altitude_m=700, noise_figure_db=5),
    Receiver(name="Passo dei Giovi", latitude=44.561, longitude=8.956, altitude_m=480, noise_figure_db=6),
    Receiver(name="Genova", latitude=44.395, longitude=8.956, altitude_m=100, noise_figure_db=8),
    Receiver(name="Milano Baggio", latitude=45.478, longitude=9.123, altitude_m=120, noise_figure_db=10),
)


class Scene(BaseModel):
    """Everything that does not change from session to session. Units are in the names."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    version: int = 1
    seed: int = Field(7, ge=0)
    receivers: tuple[Receiver, ...] = Field(ITALY, min_length=3)
    frequency_hz: float = Field(145e6, gt=0)
    sample_rate_hz: float = Field(192e3, gt=0)
    path_loss_exponent: float = Field(3.0, gt=0)
    reference_distance_km: float = Field(1.0, gt=0)
    shadowing_db: float = Field(6.0, ge=0)
    correlation_km: float = Field(20.0, gt=0)
    fading_db: float = Field(2.0, gt=0)
    transmit_gain_dbi: float = 0.0
    transmit_power_dbm: tuple[float, float] = (30.0, 45.0)
    margin_km: float = Field(20.0, ge=0)
    map_step_km: float = Field(1.0, gt=0)
    maps_sha256: str = ""

    @property
    def plane(self) -> LocalPlane:
        """Local plane about the centre of the network."""
        return network_plane(self.receivers)

    @property
    def receiver_positions(self) -> Array:
        """(receivers, 2) east and north in km."""
        return receiver_positions(self.receivers, self.plane)

    @property
    def box(self) -> tuple[Array, Array]:
        """Lower and upper corner of the region in km, (2,) each: the network's own box and the margin."""
        return network_box(self.receiver_positions, self.margin_km)

    @cached_property
    def shadow_maps(self) -> Array:
        """(receivers, nodes east, nodes north) in dB, node (0, 0) at the lower corner of :attr:`box`."""
        low, high = self.box
        nodes = np.ceil((high - low) / self.map_step_km).astype(int) + 1
        maps = np.stack(
            [
                _gudmundson_field(np.random.default_rng([self.seed, 1, index]), nodes, self)
                for index in range(len(self.receivers))
            ]
        )
        digest = hashlib.sha256(maps.tobytes()).hexdigest()
        if self.maps_sha256 and digest != self.maps_sha256:
            raise DataError(
                f"The shadow maps drawn from seed {self.seed} are not those the scene file was written with.",
                mend="Simulate the data set again with this version, or use the version that made it.",
            )
        return maps

    def save(self, folder: Path) -> Path:
        """Write ``scene.json`` with the maps' checksum into ``folder``."""
        checksum = hashlib.sha256(self.shadow_maps.tobytes()).hexdigest()
        path = folder / SCENE_FILE
        path.write_text(self.model_copy(update={"maps_sha256": checksum}).model_dump_json(indent=1), encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: Path) -> Scene | None:
        """The scene of a simulated data set; None for field data, which has no scene file."""
        path = folder / SCENE_FILE
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} is not a scene file.", mend="Simulate the data set again, or remove the file."
            ) from error


def network_plane(receivers: tuple[Receiver, ...]) -> LocalPlane:
    """Local plane about the mean of the receivers' positions."""
    return LocalPlane(
        float(np.mean([receiver.latitude for receiver in receivers])),
        float(np.mean([receiver.longitude for receiver in receivers])),
    )


def receiver_positions(receivers: tuple[Receiver, ...], plane: LocalPlane) -> Array:
    """(receivers, 2) east and north in km."""
    return plane.to_plane([r.latitude for r in receivers], [r.longitude for r in receivers])


def network_box(positions: Array, margin_km: float) -> tuple[Array, Array]:
    """Lower and upper corner, (2,) each, of the box about ``positions`` (count, 2) and ``margin_km`` more."""
    return positions.min(axis=0) - margin_km, positions.max(axis=0) + margin_km


def _gudmundson_field(random: np.random.Generator, nodes: np.ndarray, scene: Scene) -> Array:
    """One draw of the shadowing, (nodes east, nodes north) in dB, by circulant embedding on a torus twice as large."""
    torus = 2 * nodes + np.ceil(4 * scene.correlation_km / scene.map_step_km).astype(int)
    east, north = (np.minimum(np.arange(size), size - np.arange(size)) * scene.map_step_km for size in torus)
    distance = np.hypot(east[:, None], north[None, :])
    covariance = scene.shadowing_db**2 * np.exp(-distance / scene.correlation_km)
    spectrum = np.fft.fft2(covariance).real.clip(min=0)
    white = random.standard_normal(torus) + 1j * random.standard_normal(torus)
    field = np.fft.fft2(np.sqrt(spectrum / spectrum.size) * white).real
    return np.round(field[: nodes[0], : nodes[1]], 2)
