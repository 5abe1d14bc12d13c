"""Latitude and longitude to kilometres in a local plane, and back.

Equirectangular formula with the WGS 84 radii of curvature M (meridian) and N (prime vertical) at the centre φ₀::

    east  = N(φ₀) cos φ₀ (λ - λ₀)        north = M(φ₀) (φ - φ₀)

The way there and back is exact. Distances in the plane are off by the change of cos φ over the region: at 45° and 80 km
from the centre at most 1.4 %, which moves a received power by 0.2 dB. Errors that are reported are geodesic distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SEMI_MAJOR_KM = 6378.137
ECCENTRICITY_SQUARED = 6.69437999014e-3


@dataclass(frozen=True)
class LocalPlane:
    """A plane that touches the ellipsoid at (latitude, longitude), in degrees."""

    latitude: float
    longitude: float

    @property
    def km_per_degree(self) -> tuple[float, float]:
        """Kilometres per degree of longitude and of latitude at the centre."""
        sine = np.sin(np.radians(self.latitude))
        bend = 1 - ECCENTRICITY_SQUARED * sine**2
        prime_vertical = SEMI_MAJOR_KM / np.sqrt(bend)
        meridian = SEMI_MAJOR_KM * (1 - ECCENTRICITY_SQUARED) / bend**1.5
        degree = np.pi / 180
        return float(prime_vertical * np.cos(np.radians(self.latitude)) * degree), float(meridian * degree)

    def to_plane(self, latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> Array:
        """(…) degrees → (…, 2) east and north in km."""
        east, north = self.km_per_degree
        return np.stack(
            [
                (np.asarray(longitude, np.float64) - self.longitude) * east,
                (np.asarray(latitude, np.float64) - self.latitude) * north,
            ],
            axis=-1,
        )

    def to_degrees(self, plane: npt.ArrayLike) -> tuple[Array, Array]:
        """(…, 2) east and north in km → latitude and longitude in degrees, each (…)."""
        km = np.asarray(plane, np.float64)
        east, north = self.km_per_degree
        return self.latitude + km[..., 1] / north, self.longitude + km[..., 0] / east


def geodesic_distance(
    latitude_a: npt.ArrayLike, longitude_a: npt.ArrayLike, latitude_b: npt.ArrayLike, longitude_b: npt.ArrayLike
) -> Array:
    """Distances on the WGS 84 ellipsoid in metres, (count,)."""
    from pyproj import Geod

    ends: list[Any] = [np.asarray(v, np.float64).ravel() for v in (longitude_a, latitude_a, longitude_b, latitude_b)]
    return np.asarray(Geod(ellps="WGS84").inv(*ends)[2], np.float64)
