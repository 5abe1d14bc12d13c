"""From a checkpoint to a version that plain MLflow opens and serves."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch

import servers
from heimdall.errors import DataError, HoldError, ServiceError
from heimdall.registry.client import connect
from heimdall.registry.load import fetch_checkpoint, open_model
from heimdall.registry.register import register, register_trained

NAME = "heimdall-beacon"


def registered(trained: Any, settings: Any, run_id: str, **more: Any) -> Any:
    places = {"run_id": run_id, "checkpoint": trained.checkpoint, "settings": settings, "module": trained.module}
    return register(trained.task, trained.data, trained.report, **{**places, **more})


def positions(answer: dict[str, Any], truth: Any) -> Any:
    return np.hypot(np.asarray(answer["lat"]) - truth[:, 0], np.asarray(answer["lon"]) - truth[:, 1])


@pytest.mark.parametrize("place", ["local", "served"])
def test_a_registered_model_opens_with_plain_mlflow_and_holds_no_pickle(
    place: str, request: pytest.FixtureRequest, beacon: Any, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, trained = request.getfixturevalue(place), beacon()
    run_id = make_run(settings)
    result = registered(trained, settings, run_id, description="For tests.")
    client = connect(settings)
    client.set_registered_model_alias(result.name, "champion", result.version)

    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(f"models:/{result.name}@champion")
    answer = model.predict({"features": trained.data.features[:5]})
    assert positions(answer, trained.data.truth[:5]).max() < 0.2
    assert set(answer) == {"lat", "lon", "sigma"}
    assert model.metadata.signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, 3, 4, 5)
    assert model.metadata.saved_input_example_info is not None

    folder = Path(mlflow.artifacts.download_artifacts(result.uri, dst_path=str(request.getfixturevalue("tmp_path"))))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in {".pkl", ".pt", ".pth", ".ckpt", ".joblib"}]
    assert not [
        path for path in files if zipfile.is_zipfile(path) or path.read_bytes()[:2] in {b"\x80\x02", b"\x80\x04"}
    ]
    card = (folder / "heimdall" / "card.md").read_text()
    assert "For tests." in card
    assert "![curve](pictures/curve.png)" in card
    assert (folder / "heimdall" / "pictures" / "curve.png").is_file()

    version = client.get_model_version(result.name, result.version)
    link = version.description.split("![curve](")[1].split(")")[0]
    if place == "served":  # the page's picture, as the browser asks for it
        picture = requests.get(f"{settings.tracking_uri}/{link}", timeout=30)
        assert picture.content[:4] == b"\x89PNG"
    assert float(version.tags["heimdall.onnx_max_deviation"]) < 1e-4
    assert len(version.tags["heimdall.training_data_digest"]) == 64
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in logged.metrics} == {"test/error_deg": 0.03}
    history = client.get_metric_history(run_id, "test/error_deg")
    assert [(point.step, point.value) for point in history] == [(12, 0.03)]  # the run's own curve is untouched


def test_both_runtimes_and_the_rebuilt_checkpoint_give_the_same(local: Any, beacon: Any, make_run: Any) -> None:
    trained = beacon()
    uri = registered(trained, local, make_run(local)).uri
    inputs = {"features": trained.data.features[:9]}
    by_onnx = open_model(uri, local, "onnx").predict(inputs)
    by_torch = open_model(uri, local, "torch").predict(inputs)
    for name, array in by_torch.items():
        np.testing.assert_allclose(by_onnx[name], array, rtol=1e-5)
    module = trained.task.load(fetch_checkpoint(uri, local))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), trained.module.parameters(), strict=True))


def test_a_module_that_is_not_the_checkpoint_is_refused_before_anything_is_stored(
    local: Any, beacon: Any, make_run: Any
) -> None:
    with pytest.raises(HoldError, match="not the trained network"):
        registered(beacon(1.0), local, make_run(local), module=beacon(0.2).module)
    assert connect(local).search_registered_models() == []


def test_a_run_that_nobody_delivered_is_named_with_the_command_for_later(local: Any, beacon: Any) -> None:
    class Waiting:
        """A tracker whose server does not answer; the real one's behaviour is tested with the tracker."""

        run_id = run_key = "key-1"

        def flush(self, timeout_seconds: float) -> bool:
            return False

    trained = beacon()
    with pytest.raises(ServiceError, match="heimdall sync, then heimdall models register key-1"):
        register_trained(
            trained.task,
            trained.module,
            trained.data,
            trained.report,
            run_id="key-1",
            checkpoint=trained.checkpoint,
            tracker=Waiting(),  # type: ignore[arg-type]
            settings=local,
        )


def test_an_unknown_run_is_a_sentence(local: Any, beacon: Any) -> None:
    with pytest.raises(DataError, match="failed to find the run"):
        registered(beacon(), local, "0" * 32)


@pytest.mark.slow
def test_mlflow_models_serve_answers_without_our_code(
    served: Any, own_server: Any, beacon: Any, make_run: Any, tmp_path: Path
) -> None:
    trained = beacon()
    uri = registered(trained, served, make_run(served)).uri
    port = servers.free_port()
    environment = {
        **os.environ,
        **own_server.s3.environment(),
        "MLFLOW_TRACKING_URI": own_server.url,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    server = servers.Process([*command, "--host", "127.0.0.1", "--port", str(port)], tmp_path, environment)
    server.start()
    try:
        base = f"http://127.0.0.1:{port}"
        servers.wait_until(lambda: requests.get(f"{base}/ping", timeout=5).ok, "no answer", 120)
        body = {"inputs": {"features": trained.data.features[:3].tolist()}}
        answer = requests.post(f"{base}/invocations", json=body, timeout=30).json()["predictions"]
        assert positions(answer, trained.data.truth[:3]).max() < 0.2
    finally:
        server.stop()
