from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from heimdall.errors import ConfigError, DataError
from heimdall.tasks.base import Arrays, FitResult, Predict, Task, find_task
from heimdall.tasks.localization.bundle import MANIFEST
from heimdall.tasks.localization.config import Backbone, LocalizationConfig
from heimdall.tasks.localization.datamodule import LocalizationData
from heimdall.tasks.localization.metrics import calibration_figures, distance_figures
from heimdall.tasks.localization.module import LocalizationModule
from heimdall.tasks.localization.scene import Scene
from heimdall.tasks.localization.task import LocalizationTask

TASK = LocalizationTask()


@pytest.fixture
def predict(module: LocalizationModule) -> Predict:
    localizer = TASK.inference_module(module)

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = localizer(torch.from_numpy(inputs["features"]))
        return {name: value.numpy() for name, value in zip(TASK.output_names, outputs, strict=True)}

    return run


def test_the_entry_point_finds_the_task() -> None:
    assert isinstance(find_task("localization"), Task)
    assert TASK.model_name == "heimdall-localization"


def test_an_unknown_backbone_lists_the_valid_ones() -> None:
    with pytest.raises(ValidationError) as caught:
        LocalizationConfig(backbone="RESNET_5000")
    for name in Backbone:
        assert name.value in str(caught.value)


def test_backbone_names_are_accepted_in_any_case_and_with_dashes() -> None:
    assert LocalizationConfig(backbone="convnext-tiny").backbone is Backbone.CONVNEXT_TINY
    assert LocalizationConfig().backbone is Backbone.CONVNEXT_LARGE


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": -1e-3},
        {"typo": 1},
        {"backbone": "COMPACT", "pretrained": True},
        {"validation_share": 0.5, "test_share": 0.5},
        {"minimum_sigma_km": 10, "maximum_sigma_km": 1},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LocalizationConfig.model_validate(options)


def test_simulation_options_are_checked_and_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fading_db") as caught:
        TASK.simulate(tmp_path / "set", {"session": "5"})
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="sessions"):
        TASK.simulate(tmp_path / "set", {"sessions": "-1"})
    assert not (tmp_path / "set").exists()


def test_simulation_follows_its_options(tmp_path: Path) -> None:
    TASK.simulate(tmp_path / "set", {"sessions": "2", "seed": "9", "frequency_mhz": "433.5", "fading_db": "1.5"})
    scene = Scene.load(tmp_path / "set")
    assert scene is not None
    assert (scene.seed, scene.frequency_hz, scene.fading_db) == (9, 433.5e6, 1.5)
    assert len(list((tmp_path / "set").glob("*.sigmf-data"))) == 2
    TASK.simulate(tmp_path / "later", {"sessions": "1", "seed": "9", "first_session": "2", "fading_db": "1.5"})
    assert [path.name for path in (tmp_path / "later").glob("*.sigmf-data")] == ["session-00002.sigmf-data"]


def test_evaluation_says_which_data_and_how_far_off(predict: Predict, recordings: Path, tmp_path: Path) -> None:
    evaluation = TASK.evaluate(predict, str(recordings), tmp_path, batch_size=16)
    assert evaluation.count == 40
    assert len(evaluation.digest) == 64
    assert 0 < evaluation.metrics["median_m"] < 300e3
    assert 0 <= evaluation.metrics["coverage68"] <= evaluation.metrics["coverage95"] <= 1


def test_evaluation_of_the_truth_is_nought_metres(recordings: Path, data: LocalizationData, tmp_path: Path) -> None:
    truths = iter(np.split(data.dataset.truths, 4))

    def oracle(inputs: Arrays) -> Arrays:
        latitude, longitude = next(truths).T
        sigma = np.ones(len(inputs["features"]))
        return {"latitude": latitude, "longitude": longitude, "sigma_east_m": sigma, "sigma_north_m": sigma}

    metrics = TASK.evaluate(oracle, str(recordings), tmp_path, batch_size=10).metrics
    assert metrics["rmse_m"] == pytest.approx(0, abs=1e-3)
    assert metrics["coverage68"] == 1


def test_a_model_that_gives_nan_has_no_figures_and_writes_no_positions(recordings: Path, tmp_path: Path) -> None:
    def broken(inputs: Arrays) -> Arrays:
        return {name: np.full(len(inputs["features"]), np.nan) for name in TASK.output_names}

    figures = TASK.evaluate(broken, str(recordings), tmp_path).metrics
    assert figures
    assert all(np.isnan(value) for value in figures.values())
    with pytest.raises(DataError, match="not numbers"):
        TASK.predict(broken, str(recordings), tmp_path)


def test_prediction_is_one_row_a_session_and_needs_no_truth(
    predict: Predict, own_recordings: Path, tmp_path: Path
) -> None:
    for meta in own_recordings.glob("*.sigmf-meta"):
        meta.write_text(meta.read_text().replace("heimdall:transmitter", "heimdall:unused"))
    table = TASK.predict(predict, str(own_recordings), tmp_path)
    assert list(table.columns) == ["session", "latitude", "longitude", "sigma_east_m", "sigma_north_m"]
    assert len(table) == 12
    assert table.latitude.between(40, 50).all()


def test_examples_are_real_features(data: LocalizationData) -> None:
    example = TASK.example_input(data, 3)
    assert example["features"].shape == (3, 4, 128, 32)
    np.testing.assert_array_equal(example["features"][0], data.features[data.split.test[0]])


def test_a_bundle_gives_the_same_estimates(
    module: LocalizationModule, config: LocalizationConfig, data: LocalizationData, tmp_path: Path
) -> None:
    path = TASK.bundle(module, config, tmp_path)
    loaded = TASK.load(path)
    features = torch.from_numpy(TASK.example_input(data)["features"])
    with torch.no_grad():
        for found, expected in zip(loaded(features), module.eval()(features), strict=True):
            assert torch.equal(found, expected)
    assert TASK.bundle(module, config, tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_file_that_is_no_bundle_and_a_bundle_of_tomorrow_are_refused(
    module: LocalizationModule, config: LocalizationConfig, tmp_path: Path
) -> None:
    (tmp_path / "no.zip").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match="not a model bundle"):
        TASK.load(tmp_path / "no.zip")
    path = TASK.bundle(module, config, tmp_path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content[MANIFEST] = content[MANIFEST].replace(b'"version": 1', b'"version": 2')
    with zipfile.ZipFile(tmp_path / "later.zip", "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    with pytest.raises(DataError, match="version 2"):
        TASK.load(tmp_path / "later.zip")


def test_report_compares_with_null_solver_and_limits_and_draws_pictures(
    module: LocalizationModule, data: LocalizationData, tmp_path: Path
) -> None:
    history = {name: [(1, 0, 3.0), (2, 1, 2.0)] for name in ("train/epoch_loss", "val/loss", "train/mae", "val/mae")}
    result = FitResult(module=module, data=data, history=history, checkpoint=tmp_path / "none.ckpt")
    report = TASK.report(result, tmp_path / "report")
    assert [row[0] for row in report.rows] == [
        "centre of the training positions",
        "classical solver",
        "network",
        "solver that knows the terrain",
        "Cramér–Rao bound",
    ]
    assert {len(row) for row in report.rows} == {len(report.columns)}
    assert report.metrics["map_solver/median_m"] < report.metrics["null/median_m"]
    assert all(np.isfinite(value) for value in report.metrics.values())
    for path in report.files:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 20_000
    assert {path.stem for path in report.files} == {"map", "errors", "calibration", "learning-curves"}


def test_field_data_without_a_scene_has_no_limits_to_report(
    module: LocalizationModule, own_recordings: Path, config: LocalizationConfig, tmp_path: Path
) -> None:
    (own_recordings / "scene.json").unlink()
    own = TASK.prepare(config.model_copy(update={"data": str(own_recordings), "cache": ""}), tmp_path / "cache")
    result = FitResult(module=module, data=TASK.datamodule(own), history={}, checkpoint=tmp_path / "none.ckpt")
    report = TASK.report(result, tmp_path / "report")
    assert len(report.rows) == 3
    assert "no limit is known" in " ".join(report.notes)


def test_figures_of_known_errors() -> None:
    figures = distance_figures(np.array([0.0, 3.0, 4.0, 5.0, 1000.0]))
    assert figures["median_m"] == 4
    assert figures["mean_m"] == pytest.approx(202.4)
    assert figures["rmse_m"] == pytest.approx(447.2248, abs=1e-3)


def test_gaussian_errors_with_true_uncertainty_are_calibrated() -> None:
    random = np.random.default_rng(0)
    sigma = random.uniform(1, 20, (20_000, 2))
    figures = calibration_figures(sigma * random.standard_normal(sigma.shape), sigma)
    assert figures["coverage68"] == pytest.approx(0.68, abs=0.01)
    assert figures["coverage95"] == pytest.approx(0.95, abs=0.01)
