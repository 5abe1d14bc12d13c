"""Both tasks, from training to a champion that plain MLflow opens and the commands use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from heimdall.registry.load import fetch_bundle
from heimdall.settings import Settings

pytestmark = pytest.mark.slow

LOCALIZATION = ["--backbone", "COMPACT", "--sample-sessions", "60", "--batch-size", "16"]
PTYCHOGRAPHY = ["--simulate-patterns", "64", "--n-images", "12", "--width", "8", "--physics-steps", "4"]
SHORT = ["--epochs", "1", "--quiet", "--accelerator", "cpu"]


@pytest.fixture
def lenient(tmp_path: Path) -> Any:
    """``lenient(metric)``: gates that a network after one epoch passes."""

    def write(metric: str) -> Path:
        path = tmp_path / "lenient.toml"
        path.write_text(f'[[metrics]]\nmetric = "{metric}"\nlimit = 1e9\n')
        return path

    return write


def by_mlflow(name: str, local: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The champion's stored example as plain MLflow answers it, and as torch does with our own code."""
    import mlflow

    from heimdall.registry.load import example_inputs, open_model

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    uri = f"models:/{name}@champion"
    model = open_model(uri, local, "torch", "cpu")
    assert model.manifest is not None
    inputs = example_inputs(fetch_bundle(uri, local), model.manifest.inputs)
    return mlflow.pyfunc.load_model(uri).predict(inputs), model.predict(inputs)


def test_localization_from_training_to_a_map(
    heimdall: Any, local: Settings, lenient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "heimdall-localization"
    heimdall("train", "localization", *LOCALIZATION, *SHORT)
    heimdall("simulate", "localization", "holdout", "--sessions", "12", "--first-session", "60")
    told = json.loads(
        heimdall("models", "promote", name, "1", "--data", "holdout", "--gates", lenient("median_m"), "--json")
    )
    assert told["moved"]
    figures = {check["name"]: check["challenger"] for check in told["checks"]}
    assert figures["samples"] == 12

    answer, expected = by_mlflow(name, local, monkeypatch)
    assert set(answer) == {"latitude", "longitude", "sigma_east_m", "sigma_north_m"}
    for key, values in expected.items():
        np.testing.assert_allclose(answer[key], values, rtol=1e-4)
    assert (np.asarray(answer["sigma_east_m"]) > 0).all()

    words = ["predict", "--model", f"models:/{name}@champion", "--input", "holdout", "--output"]
    for ending, options in (("parquet", []), ("csv", ["--runtime", "torch"]), ("geojson", [])):
        heimdall(*words, f"positions.{ending}", *options)
    by_onnx, by_torch = pd.read_parquet("positions.parquet"), pd.read_csv("positions.csv")
    assert list(by_onnx["session"]) == [f"session-{number:05d}" for number in range(60, 72)]
    for column in expected:
        np.testing.assert_allclose(by_onnx[column], by_torch[column], rtol=1e-4)
    places = json.loads(Path("positions.geojson").read_text())["features"]
    assert places[0]["geometry"]["coordinates"] == pytest.approx(
        [by_onnx["longitude"][0], by_onnx["latitude"][0]], rel=1e-5
    )


def test_ptychography_from_training_to_a_reconstruction(
    heimdall: Any, local: Settings, lenient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "heimdall-ptychography"
    heimdall("train", "ptychography", *PTYCHOGRAPHY, *SHORT)
    heimdall("simulate", "ptychography", "scans", "--patterns", "49", "--seed", "3")
    words = ["models", "promote", name, "1", "--data", "scans/test.npz", "--gates", lenient("misfit"), "--json"]
    assert json.loads(heimdall(*words))["moved"]

    answer, expected = by_mlflow(name, local, monkeypatch)
    assert set(answer) == {"amplitude", "phase"}
    for key, values in expected.items():
        np.testing.assert_allclose(answer[key], values, rtol=1e-3, atol=1e-3)

    uri = f"models:/{name}@champion"
    heimdall("predict", "--model", uri, "--input", "scans/test.npz", "--output", "patterns.csv")
    frame = pd.read_csv("patterns.csv")
    assert len(frame) == 49
    told = heimdall("reconstruct", "--model", uri, "--test-data", "scans/test.npz", "--output-dir", "object")
    assert "misfit" in told
    with np.load("object/reconstruction.npz", allow_pickle=False) as arrays:
        assert np.iscomplexobj(arrays["object"])
    heimdall("predict", "--model", uri, "--input", "scans/test.npz", "--output", "places.geojson", code=2)
    assert "Write .parquet or .csv" in heimdall.err
