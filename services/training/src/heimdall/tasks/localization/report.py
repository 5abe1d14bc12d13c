"""What a run ends with: the network beside what it must beat and what it cannot beat, in figures and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from heimdall.tasks.base import FitResult, Report
from heimdall.tasks.localization import pictures
from heimdall.tasks.localization.bound import bound_distances, cramer_rao_covariance
from heimdall.tasks.localization.datamodule import Batch, LocalizationData
from heimdall.tasks.localization.geometry import Array, geodesic_distance
from heimdall.tasks.localization.metrics import calibration_figures, distance_figures, standardised_squares
from heimdall.tasks.localization.module import LocalizationModule
from heimdall.tasks.localization.scene import Scene
from heimdall.tasks.localization.solver import signal_powers, solve

COLUMNS = ("", "median m", "mean m", "90 % m", "RMSE m", "68 % ellipse", "95 % ellipse")


@dataclass(frozen=True)
class TestResult:
    """Estimates of the network and of its rivals on the test sessions; positions (count, 2) in km."""

    truth: Array
    estimate: Array
    sigma: Array
    receivers: Array
    names: tuple[str, ...]
    distances_m: dict[str, Array]  # by key of a row, in the order of the table
    scene: Scene
    simulated: bool

    @property
    def squares(self) -> Array:
        """Standardised squares of the network's residuals, (count,)."""
        return standardised_squares(self.estimate - self.truth, self.sigma)


LABELS = {
    "null": "centre of the training positions",
    "solver": "classical solver",
    "test": "network",
    "map_solver": "solver that knows the terrain",
    "bound": "Cramér–Rao bound",
}


def make_report(result: FitResult, folder: Path) -> Report:
    """Evaluate ``result`` on its test sessions and draw the pictures into ``folder``."""
    module, data = result.module, result.data
    assert isinstance(module, LocalizationModule) and isinstance(data, LocalizationData)  # noqa: S101, PT018
    folder.mkdir(parents=True, exist_ok=True)
    test = evaluate_rivals(module, data)
    calibration = calibration_figures(test.estimate - test.truth, test.sigma)
    metrics: dict[str, float] = {}
    for key, distances in test.distances_m.items():
        metrics |= {f"{key}/{name}": value for name, value in distance_figures(distances).items()}
    metrics |= {f"test/{name}": value for name, value in calibration.items()}
    metrics["test/mae"] = metrics["test/mean_m"]
    metrics["test/median_over_null"] = metrics["test/median_m"] / metrics["null/median_m"]
    metrics["test/median_over_solver"] = metrics["test/median_m"] / metrics["solver/median_m"]
    files = [
        pictures.draw_map(test, folder / "map.png"),
        pictures.draw_errors(test, folder / "errors.png"),
        pictures.draw_calibration(test, folder / "calibration.png"),
    ]
    if result.history:
        files.append(pictures.draw_learning_curves(result.history, folder / "learning-curves.png"))
    return Report(metrics=metrics, columns=COLUMNS, rows=_rows(test, metrics), files=files, notes=_notes(test, metrics))


def evaluate_rivals(module: LocalizationModule, data: LocalizationData) -> TestResult:
    """The network, the null model, the solvers and, for simulated data, the bound on the test sessions of ``data``."""
    indices = data.split.test
    truth = data.positions[indices]
    powers = signal_powers(np.asarray(data.features[indices]))
    known = data.dataset.scene
    scene = known or Scene(receivers=data.dataset.receivers)
    estimate, sigma = _estimates(module, data)
    guesses = {
        "null": np.broadcast_to(data.positions[data.split.train].mean(axis=0), truth.shape),
        "solver": solve(powers, scene, with_maps=False),
        "test": estimate,
    }
    if known:
        guesses["map_solver"] = solve(powers, known, with_maps=True)
    latitude, longitude = data.dataset.truths[indices].T
    distances = {
        key: geodesic_distance(*data.plane.to_degrees(guess), latitude, longitude) for key, guess in guesses.items()
    }
    if known:
        distances["bound"] = bound_distances(cramer_rao_covariance(known, truth, np.isfinite(powers)))
    return TestResult(
        truth=truth,
        estimate=estimate,
        sigma=sigma,
        receivers=data.plane.to_plane(
            [receiver.latitude for receiver in data.dataset.receivers],
            [receiver.longitude for receiver in data.dataset.receivers],
        ),
        names=tuple(receiver.name for receiver in data.dataset.receivers),
        distances_m=distances,
        scene=scene,
        simulated=known is not None,
    )


def _estimates(module: LocalizationModule, data: LocalizationData) -> tuple[Array, Array]:
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    positions, sigmas = [], []
    batch: Batch
    with torch.no_grad():
        for batch in data.test_dataloader():
            position, sigma = module(batch[0].to(device))
            positions.append(position.cpu())
            sigmas.append(sigma.cpu())
    module.train(was_training)
    return torch.cat(positions).double().numpy(), torch.cat(sigmas).double().numpy()


def _rows(test: TestResult, metrics: dict[str, float]) -> list[list[str]]:
    rows = []
    for key in test.distances_m:
        figures = [f"{metrics[f'{key}/{name}']:,.0f}" for name in ("median_m", "mean_m", "p90_m", "rmse_m")]
        shares = [f"{metrics[f'test/coverage{share}']:.0%}" if key == "test" else "" for share in (68, 95)]
        rows.append([LABELS[key], *figures, *shares])
    return rows


def _notes(test: TestResult, metrics: dict[str, float]) -> list[str]:
    notes = [
        f"The network's median error is {metrics['test/median_over_null']:.2f} of the null model's and "
        f"{metrics['test/median_over_solver']:.2f} of the classical solver's, on {len(test.truth)} held-out sessions."
    ]
    if test.simulated:
        notes.append("The recordings are simulated; the last two rows know the simulated terrain and are limits.")
    else:
        notes.append("Field data: the solver assumes a path-loss exponent of 3, and no limit is known.")
    return notes
