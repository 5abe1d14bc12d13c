"""From a trained network to one registered version, in steps that may be cut at any point and run again.

What belongs together is found by one key, made of run and checkpoint:

1. build    everything on disk; ONNX is compared with torch before the registry hears of anything
2. log      a logged model of the run: made, filled, marked READY; half-filled ones of an earlier try are deleted
3. version  one request that carries source, description and tags: the only step that others can see

Running it again takes up after the last step that was finished, and ends with the same version.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from heimdall import logs
from heimdall.errors import HoldError, ServiceError
from heimdall.registry import card, export, model, weights
from heimdall.registry.client import asking, connect
from heimdall.tasks.base import Arrays, Report, Task

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

    from heimdall.settings import Settings
    from heimdall.tracking.tracker import MLflowTracker

KEY_TAG = "heimdall.registration"
TASK_TAG = "heimdall.task"
PARITY_SAMPLES = 8
EXAMPLE_SAMPLES = 2  # MLflow writes the example as JSON, twice

log = logs.get(__name__)


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A version in the registry; ``uri`` opens it: ``models:/NAME/VERSION``."""

    name: str
    version: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model on disk, complete but for the ids that MLflow gives out."""

    manifest: model.Manifest
    onnx_file: Path
    extras: Path
    example: Arrays
    outputs: Arrays


def register_trained(
    task: Task[Any],
    module: LightningModule,
    data: LightningDataModule,
    report: Report,
    *,
    run_id: str,
    checkpoint: Path,
    tracker: MLflowTracker,
    settings: Settings,
    description: str = "",
) -> RegisteredModel:
    """Register what a run has just trained. ``module`` holds the weights of ``checkpoint``.

    Raises :class:`HoldError` where the stored model differs from ``module``, :class:`DataError` where the network
    cannot be exported, :class:`ServiceError` where the run is not delivered yet or the registry does not answer.
    """
    if not tracker.flush(settings.heimdall_end_wait_seconds):
        raise ServiceError(
            f"The run {run_id} is not delivered yet, so its model cannot be registered.",
            mend=f"Once the server answers: heimdall sync, then heimdall models register {run_id}.",
        )
    # what was handed over may still be the run's own key: the server names the run when it is delivered
    delivered = tracker.run_id if run_id in {tracker.run_id, tracker.run_key} else tracker.resolve_run_id(run_id)
    return register(
        task,
        data,
        report,
        run_id=delivered,
        checkpoint=checkpoint,
        settings=settings,
        description=description,
        module=module,
    )


def register(
    task: Task[Any],
    data: LightningDataModule,
    report: Report,
    *,
    run_id: str,
    checkpoint: Path,
    settings: Settings,
    description: str = "",
    module: LightningModule | None = None,
) -> RegisteredModel:
    """Register ``checkpoint`` of the run ``run_id`` once; again and again gives the same version.

    With ``module`` the stored model is compared with it too, which shows weights lost on the way to the disk.
    """
    client = connect(settings)
    key = registration_key(run_id, checkpoint)
    with asking(settings, "find the run"):
        run = client.get_run(run_id)
        known = find_version(client, task.model_name, key)
    if known is not None:
        log.info("already registered", model=task.model_name, version=known)
        return _registered(task.model_name, known)
    with TemporaryDirectory(prefix="heimdall-model-") as temporary:
        built = prepare(task, data, report, run_id, checkpoint, Path(temporary), module, description)
        with asking(settings, "store the model"):
            logged = log_model(client, run, built, key, Path(temporary) / "model")
            text = card.page(built.manifest, report, description, logged.model_id)
            version = create_version(client, task, built, logged, key, text)
    log.info("registered", model=task.model_name, version=version, run=run_id)
    return _registered(task.model_name, version)


def _registered(name: str, version: str) -> RegisteredModel:
    return RegisteredModel(name=name, version=version, uri=f"models:/{name}/{version}")


def registration_key(run_id: str, checkpoint: Path) -> str:
    """What makes a registration one: the run and the checkpoint's content."""
    return hashlib.sha256(f"{run_id}:{model.file_digest(checkpoint)}".encode()).hexdigest()[:32]


def prepare(
    task: Task[Any],
    data: LightningDataModule,
    report: Report,
    run_id: str,
    checkpoint: Path,
    folder: Path,
    module: LightningModule | None,
    description: str,
) -> Built:
    """Write weights, ONNX and card below ``folder``, and prove that all ways to run the model agree."""
    extras, onnx_file = folder / model.FOLDER, folder / model.ONNX_FILE
    weights.split_checkpoint(checkpoint, extras)
    network = task.inference_module(weights.load_module(task, extras))
    example = task.example_input(data, PARITY_SAMPLES)
    names = task.input_names, task.output_names
    served = export.torch_predict(network, *names, provider="cpu")
    if module is not None:
        trained = export.torch_predict(task.inference_module(module), *names, provider="cpu")
        _same_weights(trained(example), served(example))
    export.export_onnx(network, example, *names, onnx_file)
    exported = export.onnx_predict(onnx_file, "cpu")
    parity = export.check_parity(served, exported, example)
    manifest = model.Manifest(
        task=task.name,
        name=task.model_name,
        inputs=task.input_names,
        outputs=task.output_names,
        run_id=run_id,
        checkpoint_sha256=model.file_digest(checkpoint),
        training_data_digest=model.data_digest(data),
        metrics=model.finite(report.metrics),
        parity=parity,
        latency_ms=export.latency_ms(exported, example),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        environment=model.environment(),
    )
    (folder / model.MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    (extras / "card.md").write_text(card.write_card(manifest, report, description), encoding="utf-8")
    card.store_pictures(report, extras)
    few = {name: array[:EXAMPLE_SAMPLES] for name, array in example.items()}
    return Built(manifest=manifest, onnx_file=onnx_file, extras=extras, example=few, outputs=exported(few))


def _same_weights(trained: Arrays, stored: Arrays) -> None:
    for name, array in trained.items():
        _, relative = export.deviation(array, stored[name])
        if not relative <= export.PARITY_TOLERANCE:
            raise HoldError(
                f"The checkpoint is not the trained network: its {name!r} is off by {relative:.2g} of the range.",
                mend="The module must hold the weights of the checkpoint that is registered with it.",
            )


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


def create_version(
    client: MlflowClient, task: Task[Any], built: Built, logged: LoggedModel, key: str, text: str
) -> str:
    """The one version for ``key``. Where two processes register at once, both return the older one."""
    from mlflow.exceptions import MlflowException

    name, manifest = built.manifest.name, built.manifest
    try:
        client.create_registered_model(
            name, tags={TASK_TAG: task.name}, description=f"Models of the heimdall task {task.name!r}."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {
        KEY_TAG: key,
        TASK_TAG: task.name,
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
