"""From a trained network to one registered version, in steps that may be cut at any point and run again.

What belongs together is found by one key, made of run and checkpoint:

1. build    everything on disk; ONNX is compared with torch before the registry hears of anything
2. log      a logged model of the run: made, filled, marked READY; half-filled ones of an earlier try are deleted
3. version  one request that carries source, description and tags: the only step that others can see

Running it again takes up after the last step that was finished, and ends with the same version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from heimdall import logs
from heimdall.errors import HoldError, ServiceError
from heimdall.registry import card, export, model, weights
from heimdall.registry.client import asking, connect
from heimdall.registry.store import Built, create_version, find_version, log_model
from heimdall.tasks.base import Arrays, Report, Task

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule

    from heimdall.settings import Settings
    from heimdall.tracking.tracker import MLflowTracker

PARITY_SAMPLES = 8
EXAMPLE_SAMPLES = 2  # MLflow writes the example as JSON, twice

log = logs.get(__name__)


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A version in the registry; ``uri`` opens it: ``models:/NAME/VERSION``."""

    name: str
    version: str
    uri: str


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
            version = create_version(client, built, logged, key, text)
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
