"""The steps of a registration that MLflow keeps: a logged model, filled and READY, and the one version made from it.

Each step first looks for what an earlier try has left under the same key (:mod:`heimdall.registry.register`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heimdall.registry import model
from heimdall.tasks.base import Arrays

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

KEY_TAG = "heimdall.registration"
TASK_TAG = "heimdall.task"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model on disk, complete but for the ids that MLflow gives out."""

    manifest: model.Manifest
    onnx_file: Path
    extras: Path
    example: Arrays
    outputs: Arrays


def log_model(client: MlflowClient, run: Run, built: Built, key: str, folder: Path) -> LoggedModel:
    """The READY logged model for ``key``: an earlier one, or a new one built into ``folder`` and uploaded."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    earlier = client.search_logged_models([run.info.experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{key}'")
    ready = [candidate for candidate in earlier if str(candidate.status) == "READY"]
    for candidate in earlier:
        if candidate not in ready:
            client.delete_logged_model(candidate.model_id)  # an upload that was cut
    if ready:
        logged = ready[0]
    else:
        logged = client.create_logged_model(
            run.info.experiment_id,
            name=built.manifest.name,
            source_run_id=run.info.run_id,
            tags={KEY_TAG: key, TASK_TAG: built.manifest.task},
            params={"checkpoint_sha256": built.manifest.checkpoint_sha256},
            model_type=built.manifest.task,
        )
        meta = Model(run_id=run.info.run_id, model_id=logged.model_id, artifact_path=logged.artifact_location)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # MLflow on its own type hints
            model.build(folder, built.onnx_file, built.extras, built.example, built.outputs, meta)
        client.log_model_artifacts(logged.model_id, str(folder))
        logged = client.finalize_logged_model(logged.model_id, "READY")
    shown = run.outputs.model_outputs if run.outputs else []
    if logged.model_id not in [output.model_id for output in shown]:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _log_metrics(client, run, built, logged)
    return logged


def _log_metrics(client: MlflowClient, run: Run, built: Built, logged: LoggedModel) -> None:
    from mlflow.entities import Metric

    # the points that the run has already: MLflow knows a point by (key, timestamp, step, value), so none is doubled
    points = {metric.key: metric for metric in run.data.to_proto().metrics}
    metrics = []
    for name, value in built.manifest.metrics.items():
        if value is not None:
            point = points.get(name)
            when, step = (point.timestamp, point.step) if point is not None else (logged.creation_timestamp, 0)
            metrics.append(Metric(name, value, when, step, model_id=logged.model_id, run_id=run.info.run_id))
    if metrics:
        client.log_batch(run.info.run_id, metrics=metrics)


def find_version(client: MlflowClient, name: str, key: str) -> str | None:
    """The oldest living version of the model ``name`` that was registered under ``key``."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{key}'")
    return str(min(int(version.version) for version in found)) if found else None


def create_version(client: MlflowClient, built: Built, logged: LoggedModel, key: str, text: str) -> str:
    """The one version for ``key``. Where two processes register at once, both return the older one."""
    from mlflow.exceptions import MlflowException

    name, manifest = built.manifest.name, built.manifest
    try:
        client.create_registered_model(
            name, tags={TASK_TAG: manifest.task}, description=f"Models of the heimdall task {manifest.task!r}."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {
        KEY_TAG: key,
        TASK_TAG: manifest.task,
        "heimdall.checkpoint_sha256": manifest.checkpoint_sha256,
        "heimdall.training_data_digest": manifest.training_data_digest,
        "heimdall.onnx_max_deviation": f"{manifest.parity.max_deviation:.3g}",
    }
    made = client.create_model_version(
        name,
        f"models:/{logged.model_id}",
        run_id=manifest.run_id,
        tags=tags,
        description=text,
        model_id=logged.model_id,
    )
    oldest = find_version(client, name, key)
    if oldest is not None and oldest != str(made.version):
        client.delete_model_version(name, str(made.version))
        return oldest
    return str(made.version)
