"""A model's figures on a data set, measured in the way it is served: with ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heimdall.registry.export import latency_ms
from heimdall.registry.gates import Figures
from heimdall.registry.load import example_inputs, open_model
from heimdall.registry.model import finite

if TYPE_CHECKING:
    from heimdall.registry.load import LoadedModel
    from heimdall.settings import Settings


def evaluate(model: LoadedModel, source: str, settings: Settings, batch_size: int = 64) -> Figures:
    """Run ``model`` over the data set at ``source``. Raises :class:`DataError` where that cannot be read."""
    assert model.manifest is not None  # noqa: S101 - registered models have one
    evaluation = model.task.evaluate(model.predict, source, settings.cache_dir, batch_size)
    return Figures(
        metrics=finite(evaluation.metrics),
        digest=evaluation.digest,
        count=evaluation.count,
        latency_ms=latency_ms(model.predict, example_inputs(model.path, model.manifest.inputs)),
        onnx_deviation=model.manifest.parity.relative,
    )


def open_version(name: str, version: str, settings: Settings) -> LoadedModel:
    """Version ``version`` of the registered model ``name`` on ONNX Runtime."""
    return open_model(f"models:/{name}/{version}", settings, runtime="onnx")
