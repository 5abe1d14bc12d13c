from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heimdall.errors import DataError
from heimdall.tasks.localization.propagation import mean_gain, mean_gain_gradient, reference_loss_db, shadowing
from heimdall.tasks.localization.scene import SCENE_FILE, Scene


def test_scene_file_gives_the_same_maps_bit_for_bit(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path)
    loaded = Scene.load(tmp_path)
    assert loaded is not None
    assert loaded.shadow_maps.tobytes() == scene.shadow_maps.tobytes()


def test_scene_file_with_other_maps_is_refused(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path)
    path = tmp_path / SCENE_FILE
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    loaded = Scene.load(tmp_path)
    assert loaded is not None
    with pytest.raises(DataError, match="seed 4"):
        _ = loaded.shadow_maps


def test_damaged_scene_file_is_named(tmp_path: Path) -> None:
    (tmp_path / SCENE_FILE).write_text("{")
    with pytest.raises(DataError, match=r"scene\.json"):
        Scene.load(tmp_path)


def test_shadowing_has_the_stated_deviation_and_correlation() -> None:
    scene = Scene(seed=1, shadowing_db=6, correlation_km=10, margin_km=150)
    maps = scene.shadow_maps
    assert maps.std() == pytest.approx(6, rel=0.1)
    lag = 10  # nodes of 1 km: the correlation distance
    product = (maps[:, lag:] * maps[:, :-lag]).mean() / maps.var()
    assert product == pytest.approx(np.exp(-1), abs=0.1)


def test_maps_are_exact_at_their_nodes(scene: Scene) -> None:
    nodes = np.array([[0, 0], [5, 7], [20, 30]])
    value, _ = shadowing(scene, scene.box[0] + nodes * scene.map_step_km)
    np.testing.assert_allclose(value, scene.shadow_maps[:, nodes[:, 0], nodes[:, 1]].T, atol=1e-9)


def test_free_space_loss_at_a_kilometre() -> None:
    # 32.45 + 20 log10(MHz) + 20 log10(km), the engineer's form
    assert reference_loss_db(145e6, 1.0) == pytest.approx(32.45 + 20 * np.log10(145), abs=0.01)


def test_ten_times_the_distance_costs_ten_n_decibel(scene: Scene) -> None:
    receiver = scene.receiver_positions[0]
    gain = mean_gain(scene, receiver + np.array([[2.0, 0.0], [20.0, 0.0]]), with_maps=False)[:, 0]
    assert gain[0] - gain[1] == pytest.approx(10 * scene.path_loss_exponent)


def test_gradient_agrees_with_differences(scene: Scene) -> None:
    low, high = scene.box
    # Off the nodes: the bilinear maps have a kink there
    points = np.floor(np.random.default_rng(5).uniform(low + 2, high - 2, (50, 2))) + low % 1 + 0.4
    step = 1e-4
    for axis in range(2):
        shift = np.eye(2)[axis] * step
        above, below = (mean_gain(scene, points + sign * shift, with_maps=True) for sign in (1, -1))
        np.testing.assert_allclose(
            mean_gain_gradient(scene, points)[:, :, axis], (above - below) / (2 * step), atol=1e-4
        )
