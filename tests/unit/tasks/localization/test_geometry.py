from __future__ import annotations

import numpy as np
import pytest

from heimdall.tasks.localization.geometry import LocalPlane, geodesic_distance

PLANE = LocalPlane(44.966, 8.289)


def test_way_to_the_plane_and_back_is_exact() -> None:
    points = np.random.default_rng(0).uniform(-90, 90, (100, 2))
    latitude, longitude = PLANE.to_degrees(points)
    np.testing.assert_allclose(PLANE.to_plane(latitude, longitude), points, atol=1e-9)


def test_distances_from_the_centre_are_within_the_stated_error() -> None:
    east, north = np.meshgrid(np.linspace(-90, 90, 13), np.linspace(-80, 80, 13))
    points = np.stack([east.ravel(), north.ravel()], axis=1)
    points = points[np.linalg.norm(points, axis=1) > 1]
    latitude, longitude = PLANE.to_degrees(points)
    center = np.full(len(points), PLANE.latitude), np.full(len(points), PLANE.longitude)
    true = geodesic_distance(latitude, longitude, *center) / 1e3
    assert np.abs(np.linalg.norm(points, axis=1) / true - 1).max() < 0.014


@pytest.mark.parametrize(("east", "north"), [(1.0, 0.0), (0.0, 1.0)])
def test_a_kilometre_near_the_centre_is_a_kilometre(east: float, north: float) -> None:
    latitude, longitude = PLANE.to_degrees([[east, north]])
    distance = geodesic_distance(latitude, longitude, [PLANE.latitude], [PLANE.longitude])
    assert distance[0] == pytest.approx(1000, abs=0.1)
