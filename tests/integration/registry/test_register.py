"""From a checkpoint to a version that plain MLflow opens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from heimdall.registry.client import connect
from heimdall.registry.register import register


def registered(trained: Any, settings: Any, run_id: str) -> Any:
    return register(
        trained.task,
        trained.data,
        trained.report,
        run_id=run_id,
        checkpoint=trained.checkpoint,
        settings=settings,
        module=trained.module,
    )


@pytest.mark.parametrize("place", ["local", "served"])
def test_a_registered_model_opens_with_plain_mlflow_and_without_pickle(
    place: str, request: pytest.FixtureRequest, beacon: Any, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, trained = request.getfixturevalue(place), beacon()
    result = registered(trained, settings, make_run(settings))
    client = connect(settings)
    client.set_registered_model_alias(result.name, "champion", result.version)

    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(f"models:/{result.name}@champion")
    features = trained.data.features[:5]
    answer = model.predict({"features": features})
    assert set(answer) == {"lat", "lon", "sigma"}
    error = np.hypot(answer["lat"] - trained.data.truth[:5, 0], answer["lon"] - trained.data.truth[:5, 1])
    assert error.max() < 0.2
    assert model.metadata.signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, 3, 4, 5)
    assert model.metadata.saved_input_example_info is not None
