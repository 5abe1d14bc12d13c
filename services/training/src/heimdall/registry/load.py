"""Open a model wherever it comes from: the registry, a folder, or a checkpoint of a run on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from heimdall.errors import DataError, UsageError
from heimdall.registry import export, weights
from heimdall.registry.client import alias_target, asking, connect, version_or_none
from heimdall.registry.export import Provider, Runtime
from heimdall.registry.model import FOLDER, MANIFEST, ONNX_FILE, Manifest, read_manifest
from heimdall.settings import Settings
from heimdall.tasks.base import Arrays, Predict, Task, find_task


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run, and what is known about it."""

    task: Task[Any]
    predict: Predict
    runtime: Runtime
    manifest: Manifest | None  # None for a bare checkpoint or bundle
    path: Path


def fetch_bundle(uri: str, settings: Settings) -> Path:
    """The local folder or file that ``uri`` names, downloaded into the cache where it is not on this machine.

    ``uri`` is ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/ID/PATH``, ``s3://…``, or a path. A version
    never changes, so it is downloaded once; an alias is resolved anew each time.
    Raises :class:`DataError` for what does not exist, :class:`ServiceError` where nobody answers.
    """
    if ":/" not in uri:
        path = Path(uri).expanduser()
        if not path.exists():
            raise DataError(f"There is no model at {path}.", mend="heimdall models list names the registered ones.")
        return path
    client = connect(settings)
    with asking(settings, f"fetch {uri}"):
        source = client_source(client, uri) if uri.startswith("models:/") else uri
        place = settings.cache_dir / "models" / source.removeprefix("models:/").replace("/", "_")
        if source.startswith("models:/m-") and (place / "MLmodel").is_file():
            return place
        return _download(source, place)


def fetch_checkpoint(uri: str, settings: Settings) -> Path:
    """A checkpoint that the task's own ``load`` reads, whatever ``uri`` names (see :func:`fetch_bundle`)."""
    path = fetch_bundle(uri, settings)
    if not (path / MANIFEST).is_file():
        return path
    checkpoint = settings.cache_dir / "models" / f"{read_manifest(path).checkpoint_sha256}.ckpt"
    if not checkpoint.is_file():
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = checkpoint.with_suffix(f".{os.getpid()}.part")
        weights.join_checkpoint(path / FOLDER, temporary)
        temporary.replace(checkpoint)
    return checkpoint


def client_source(client: Any, uri: str) -> str:
    """Where the version behind a ``models:/`` URI keeps its files: a logged model where it has one."""
    rest = uri.removeprefix("models:/")
    name, at, alias = rest.rpartition("@")
    if at:
        version = alias_target(client, name, alias)
    elif "/" in rest:
        name, _, number = rest.rpartition("/")
        version = version_or_none(client, name, number)
    else:
        return uri
    if version is None:
        raise DataError(f"There is no model {uri}.", mend="heimdall models list shows models, versions and aliases.")
    source = str(version.source or "")
    return source if source.startswith("models:/m-") else uri


def _download(source: str, place: Path) -> Path:
    import mlflow

    place.parent.mkdir(parents=True, exist_ok=True)
    # into a folder of our own first: another process, or a cut download, must not leave half a model in the cache
    temporary = Path(mkdtemp(prefix=".download-", dir=place.parent))
    fetched = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(temporary)))
    if not source.startswith("models:/m-"):
        return fetched
    if not (fetched / "MLmodel").is_file():
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(f"The files of {source} are gone from where MLflow keeps artifacts.", mend="Register it again.")
    try:
        fetched.rename(place)
    except OSError:
        if not (place / "MLmodel").is_file():
            raise  # else another process was faster
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def open_model(
    uri: str, settings: Settings, runtime: Runtime = "onnx", provider: Provider = "auto", task: str = ""
) -> LoadedModel:
    """The model behind ``uri``, ready to run. ``task`` is needed for a bare checkpoint or bundle only."""
    path = fetch_bundle(uri, settings)
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        if task and task != manifest.task:
            raise UsageError(f"{uri} belongs to the task {manifest.task!r}, not {task!r}.")
        found = find_task(manifest.task)
        names = manifest.inputs, manifest.outputs
        if runtime == "onnx":
            return LoadedModel(
                task=found,
                predict=export.onnx_predict(path / ONNX_FILE, provider),
                runtime=runtime,
                manifest=manifest,
                path=path,
            )
        module = found.inference_module(weights.load_module(found, path / FOLDER))
        predict = export.torch_predict(module, *names, provider=provider)
        return LoadedModel(task=found, predict=predict, runtime=runtime, manifest=manifest, path=path)
    if not task:
        raise UsageError(f"{path} does not say which task it belongs to.", mend="Add --task NAME.")
    return _open_checkpoint(path, find_task(task), runtime, provider)


def _open_checkpoint(path: Path, task: Task[Any], runtime: Runtime, provider: Provider) -> LoadedModel:
    if runtime == "onnx":
        raise UsageError(f"{path} holds no ONNX model.", mend="Use --runtime torch, or register it first.")
    try:
        module = task.load(path)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a checkpoint or bundle of the task {task.name!r}: {error}") from error
    predict = export.torch_predict(task.inference_module(module), task.input_names, task.output_names, provider)
    return LoadedModel(task=task, predict=predict, runtime=runtime, manifest=None, path=path)


def load_predict(uri: str, settings: Settings, runtime: Runtime = "onnx", provider: Provider = "auto") -> Predict:
    """Only the function behind ``uri``: named arrays in, named arrays out."""
    return open_model(uri, settings, runtime, provider).predict


def example_inputs(path: Path, names: Sequence[str]) -> Arrays:
    """The real inputs that are stored with the model at ``path``."""
    import numpy as np
    from mlflow.models import Model

    example: Any = Model.load(str(path)).load_input_example(str(path))
    if example is None:
        raise DataError(f"{path} holds no input example.")
    return {name: np.asarray(example[name], dtype=np.float32) for name in names}
