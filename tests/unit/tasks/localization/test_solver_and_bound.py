from __future__ import annotations

import numpy as np

from heimdall.tasks.localization.bound import bound_distances, cramer_rao_covariance
from heimdall.tasks.localization.datamodule import LocalizationData
from heimdall.tasks.localization.geometry import Array
from heimdall.tasks.localization.propagation import mean_gain
from heimdall.tasks.localization.scene import Scene
from heimdall.tasks.localization.simulator import draw_session
from heimdall.tasks.localization.solver import grid, signal_powers, solve

ITALIAN = Scene(seed=5)


def drawn(scene: Scene, count: int, fading_db: float) -> tuple[Array, Array]:
    random = np.random.default_rng(1)
    low, high = scene.box
    positions = random.uniform(low, high, (count, 2))
    powers = random.uniform(30, 45, (count, 1)) + mean_gain(scene, positions, with_maps=True)
    return positions, powers + fading_db * random.standard_normal(powers.shape)


def median(estimate: Array, truth: Array) -> float:
    return float(np.median(np.linalg.norm(estimate - truth, axis=1)))


def test_classical_solver_beats_the_centre_and_the_terrain_beats_the_classical_solver() -> None:
    truth, powers = drawn(ITALIAN, 200, fading_db=2)
    null = median(np.broadcast_to(truth.mean(axis=0), truth.shape), truth)
    classical = median(solve(powers, ITALIAN, with_maps=False), truth)
    aware = median(solve(powers, ITALIAN, with_maps=True), truth)
    assert classical < 0.6 * null
    assert aware < 0.3 * classical


def test_without_fading_the_map_aware_solver_finds_the_node() -> None:
    truth, powers = drawn(ITALIAN, 50, fading_db=0)
    assert median(solve(powers, ITALIAN, with_maps=True), truth) < 0.5


def test_transmit_power_does_not_matter_to_the_solver() -> None:
    _, powers = drawn(ITALIAN, 20, fading_db=2)
    np.testing.assert_array_equal(solve(powers, ITALIAN, with_maps=True), solve(powers + 7.3, ITALIAN, with_maps=True))


def test_solver_is_the_least_sum_of_squares_also_where_receivers_hear_nothing() -> None:
    _, powers = drawn(ITALIAN, 6, fading_db=2)
    powers[0, 2] = powers[1, :3] = np.nan
    found = solve(powers, ITALIAN, with_maps=True, step_km=10)
    nodes = grid(ITALIAN, 10)
    gains = mean_gain(ITALIAN, nodes, with_maps=True)
    for row, estimate in zip(powers, found, strict=True):
        heard = np.isfinite(row)
        cost = np.var(row[heard] - gains[:, heard], axis=1)
        np.testing.assert_allclose(estimate, nodes[cost.argmin()])


def test_signal_power_is_found_under_noise_and_silence_is_not_heard(data: LocalizationData, scene: Scene) -> None:
    found = signal_powers(np.asarray(data.features[:10]))
    true = np.stack([draw_session(scene, index).received_power_dbm for index in range(10)])
    heard = np.isfinite(found)
    assert heard.mean() > 0.8
    assert np.abs(found - true)[heard & (true > -120)].max() < 1.0
    assert not heard[true < -145].any()


def test_bound_agrees_with_the_full_information_matrix_from_differences() -> None:
    truth, _ = drawn(ITALIAN, 20, fading_db=0)
    low = ITALIAN.box[0]
    truth = np.floor(truth) + low % 1 + 0.4  # off the nodes of the map
    heard = np.ones((20, 7), bool)
    heard[3, :2] = False
    found = cramer_rao_covariance(ITALIAN, truth, heard)
    step = 1e-4
    for index, position in enumerate(truth):
        columns = []
        for shift in np.eye(2) * step:
            above, below = (mean_gain(ITALIAN, (position + s)[None], with_maps=True)[0] for s in (shift, -shift))
            columns.append((above - below) / (2 * step))
        jacobian = np.stack([*columns, np.ones(7)], axis=1)[heard[index]]
        whole = np.linalg.inv(jacobian.T @ jacobian / ITALIAN.fading_db**2)
        np.testing.assert_allclose(found[index], whole[:2, :2], rtol=1e-3)


def test_too_few_receivers_leave_the_position_open() -> None:
    heard = np.zeros((1, 7), bool)
    heard[0, :2] = True
    covariance = cramer_rao_covariance(ITALIAN, np.zeros((1, 2)), heard)
    assert np.isinf(covariance).all()
    assert bound_distances(covariance).size == 0


def test_solver_that_knows_all_stays_above_the_bound() -> None:
    truth, powers = drawn(ITALIAN, 300, fading_db=2)
    distances = np.linalg.norm(solve(powers, ITALIAN, with_maps=True) - truth, axis=1)
    bound = bound_distances(cramer_rao_covariance(ITALIAN, truth, np.ones((300, 7), bool))) / 1e3
    assert np.sqrt((distances**2).mean()) > np.sqrt((bound**2).mean())
