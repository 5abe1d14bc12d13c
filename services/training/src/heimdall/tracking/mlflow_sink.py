"""Delivers to MLflow: a server over HTTP, or its database directly. Runs in the courier, never in the trainer."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from heimdall.logs import redact
from heimdall.settings import Settings
from heimdall.tracking.limits import Batch
from heimdall.tracking.sinks import (
    KEY_TAG,
    MANIFEST,
    Manifest,
    PermanentError,
    RemoteRun,
    RunStart,
    TransientError,
    changed_param,
)
from heimdall.tracking.stores import ArtifactStore, open_store

# a hanging server is noticed after this; the courier does the retrying, MLflow's own would hide it
HTTP_TIMEOUT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 10

_NEVER = {"INVALID_PARAMETER_VALUE", "MALFORMED_REQUEST", "FEATURE_DISABLED"}
_DOUBTFUL = {"BAD_REQUEST", "INTERNAL_ERROR"}


def prepare_environment(settings: Settings) -> None:
    """Set what MLflow reads from the environment, for this process, before it is imported."""
    os.environ.update(settings.mlflow_environment())
    os.environ.pop("MLFLOW_RUN_ID", None)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(HTTP_TIMEOUT_SECONDS))
    os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    # it prints the traceback of every try; the reason is in our own errors
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")


def make_client(settings: Settings) -> Any:
    """An ``MlflowClient``. A database is asked first whether it answers: MLflow itself would try for minutes.

    Raises :class:`TransientError` where a database does not answer.
    """
    prepare_environment(settings)
    uri = settings.tracking_uri
    if not uri.startswith(("http://", "https://")):
        _database_answers(uri)
    from mlflow.tracking.client import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _database_answers(uri: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///").split("?")[0]).absolute().parent.mkdir(parents=True, exist_ok=True)
    options = {"connect_timeout": CONNECT_TIMEOUT_SECONDS} if uri.startswith("postgresql") else {}
    try:
        create_engine(uri, poolclass=NullPool, connect_args=options).connect().close()
    except (SQLAlchemyError, OSError) as error:
        raise TransientError(_sentence(error)) from error


class MLflowSink:
    """The :class:`~heimdall.tracking.sinks.Sink` for MLflow; artifacts go straight to where the run keeps them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: Any = None
        self._stores: dict[str, ArtifactStore] = {}
        self._homes: dict[str, tuple[str, str]] = {}  # run id -> experiment id, key

    @property
    def _client(self) -> Any:
        if self._made is None:
            self._made = make_client(self._settings)
        return self._made

    def ensure_run(self, run: RunStart) -> RemoteRun:
        """See :class:`~heimdall.tracking.sinks.Sink`."""
        with translated():
            run_id = run.run_id
            if run_id:
                self._check_run(run_id, run.key)
            else:
                experiment = self._experiment(run.experiment)
                made = not self._find(experiment, run.key)
                if made:
                    tags = {**run.tags, KEY_TAG: run.key}
                    self._client.create_run(experiment, start_time=run.start_ms, tags=tags, run_name=run.name)
                run_id = self._find(experiment, run.key)[0].info.run_id
                self._homes[run_id] = (experiment, run.key)
                self._remove_twins(run_id)
                if made:
                    return RemoteRun(run_id)
            return RemoteRun(run_id, self._manifest(run_id))

    def write_batch(self, run_id: str, batch: Batch) -> None:
        """See :class:`~heimdall.tracking.sinks.Sink`."""
        with translated():
            from mlflow.entities import Metric, Param, RunTag

            tags, params = dict(batch.tags), {}
            if batch.params:
                known = self._client.get_run(run_id).data.params
                for name, (text, timestamp_ms) in batch.params.items():
                    if known.get(name, text) == text:
                        params[name] = text
                    else:
                        tags |= changed_param(name, known[name], text, timestamp_ms)
            self._client.log_batch(
                run_id,
                metrics=[Metric(point.name, point.value, point.timestamp_ms, point.step) for point in batch.points],
                params=[Param(name, text) for name, text in params.items()],
                tags=[RunTag(name, text) for name, text in tags.items()],
                synchronous=True,
            )

    def upload(self, run_id: str, path: Path, destination: str, *, same_as: str = "") -> None:
        """See :class:`~heimdall.tracking.sinks.Sink`."""
        with translated():
            store = self._store(run_id)
            if same_as and store.copy(same_as, destination):
                return
            store.upload(path, destination)

    def set_status(self, run_id: str, status: str, end_ms: int) -> None:
        """See :class:`~heimdall.tracking.sinks.Sink`."""
        with translated():
            if status == "RUNNING":
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, end_ms)
                self._remove_twins(run_id)

    def close(self) -> None:
        """See :class:`~heimdall.tracking.sinks.Sink`."""
        with suppress(Exception):
            for store in self._stores.values():
                store.close()

    def _check_run(self, run_id: str, key: str) -> None:
        run = self._client.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":
            raise TransientError(f"the run {run_id} was deleted on the server; restore it there")
        if KEY_TAG not in run.data.tags:
            self._client.set_tag(run_id, KEY_TAG, key)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=self._settings.artifact_root))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage == "deleted":
            raise TransientError(f"the experiment {name} was deleted on the server; restore it there")
        return str(found.experiment_id)

    def _find(self, experiment: str, key: str) -> list[Any]:
        """Runs with this key: those that hold something first, then the oldest."""
        found = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=20)
        return sorted(found, key=lambda run: (_is_empty(run), run.info.start_time, run.info.run_id))

    def _remove_twins(self, run_id: str) -> None:
        """Delete empty runs with the same key: made by a request whose reply was lost and that was obeyed late."""
        if run_id in self._homes:
            for twin in self._find(*self._homes[run_id]):
                if twin.info.run_id != run_id and _is_empty(twin):
                    self._client.delete_run(twin.info.run_id)

    def _store(self, run_id: str) -> ArtifactStore:
        if run_id not in self._stores:
            root = self._client.get_run(run_id).info.artifact_uri
            self._stores[run_id] = open_store(root, self._settings)
        return self._stores[run_id]

    def _manifest(self, run_id: str) -> Manifest:
        with tempfile.TemporaryDirectory() as folder, suppress(Exception):
            # a run that holds none yet, or a store that cannot say: then files are sent again, which is harmless
            path = self._store(run_id).download(MANIFEST, Path(folder))
            found: Manifest = json.loads(path.read_text(encoding="utf-8"))
            return found
        return {}


def _is_empty(run: Any) -> bool:
    return not run.data.metrics and not run.data.params


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever MLflow, requests, SQLAlchemy or boto3 raise into the sink's two errors, without secrets."""
    try:
        yield
    except (TransientError, PermanentError):
        raise
    except Exception as error:
        code = getattr(error, "error_code", "")
        if code in _NEVER:
            raise PermanentError(_sentence(error)) from error
        raise TransientError(_sentence(error), doubtful=code in _DOUBTFUL) from error


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return redact(text)[:500]
