"""Questions to the tracking server, and the model registry's few verbs. They need a server and say so where none is.

MLflow is imported when the first question is asked, not before: a training process that only logs never loads it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from heimdall import logs
from heimdall.errors import ServiceError, UsageError
from heimdall.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

REGISTER_SECONDS = 300
STAGES = {"production": "Production", "staging": "Staging", "archived": "Archived", "none": "None"}
ALIASES = {"Production": "champion", "Staging": "challenger"}

Gate = Callable[[str, str], None]
"""``gate(model_name, version)`` makes a version the one in production, alias and stage, or raises
:class:`~heimdall.errors.HoldError` to keep it out."""

log = logs.get(__name__)


@dataclass(frozen=True)
class RunInfo:
    """A run as the server knows it."""

    run_id: str
    run_key: str
    name: str
    status: str
    start_time: datetime
    end_time: datetime | None
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifact_uri: str = ""


class RunQueries:
    """What can be asked of a tracking server. Runs are named by MLflow's id or by their own key."""

    def __init__(self, settings: Settings, *, gate: Gate | None = None) -> None:
        self.settings = settings
        self.gate = gate
        self._made: Any = None

    @property
    def client(self) -> Any:
        """The ``MlflowClient`` that answers. Raises :class:`ServiceError` where nobody does."""
        if self._made is None:
            from heimdall.tracking.mlflow_sink import make_client

            with reported(self.settings):
                self._made = make_client(self.settings)
        return self._made

    def register_model(
        self, model_name: str, model_uri: str, description: str = "", tags: Mapping[str, str] | None = None
    ) -> str:
        """Make a new version of ``model_name`` from ``model_uri`` (``runs:/…``, ``models:/…``) and return its number.

        Waits at most 300 s for it to be ready. Raises :class:`ServiceError`.
        """
        from mlflow.exceptions import MlflowException

        if model_uri.startswith("runs://"):
            # MLflow would read runs://ID/model as the run "model"
            mended = "runs:/" + model_uri.removeprefix("runs://").lstrip("/")
            log.warning("runs:// is not a model URI; the run is meant.", given=model_uri, used=mended)
            model_uri = mended
        with reported(self.settings):
            try:
                self.client.create_registered_model(model_name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            run_id = model_uri.split("/")[1] if model_uri.startswith("runs:/") else None
            version = self._create_version(model_name, model_uri, run_id, description, dict(tags or {}))
            if description and self.client.get_model_version(model_name, version).description != description:
                self.client.update_model_version(model_name, version, description)
        return version

    def transition_model_stage(self, model_name: str, version: str | int, stage: str) -> None:
        """Move a version to Production, Staging, Archived or None, and the alias champion or challenger with it.

        Where there is a gate, the way to Production is the gate's alone. Raises :class:`UsageError` for another stage,
        and what the gate raises.
        """
        known = STAGES.get(stage.lower())
        if known is None:
            raise UsageError(f"There is no stage {stage!r}.", mend=f"Choose one of: {', '.join(STAGES.values())}.")
        if known == "Production" and self.gate is not None:
            self.gate(model_name, str(version))
            return
        with reported(self.settings):
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # stages follow the aliases; see the decision
                self.client.transition_model_version_stage(
                    model_name, str(version), known, archive_existing_versions=known == "Production"
                )
            aliases = self.client.get_registered_model(model_name).aliases
            for alias in ALIASES.values():
                if str(aliases.get(alias)) == str(version) and ALIASES.get(known) != alias:
                    self.client.delete_registered_model_alias(model_name, alias)
            if known in ALIASES:
                self.client.set_registered_model_alias(model_name, ALIASES[known], str(version))

    def get_run_info(self, run_id: str) -> RunInfo:
        """The run with this id or key. Raises :class:`UsageError` where there is none."""
        with reported(self.settings):
            return _info(self._run(run_id))

    def resolve_run_id(self, run: str) -> str:
        """MLflow's id of the run with this id or key. Raises :class:`UsageError` where there is none."""
        return self.get_run_info(run).run_id

    def get_best_run(self, metric: str, mode: Literal["min", "max"] = "min") -> RunInfo | None:
        """The finished run of the experiment with the best last value of ``metric``; None where there is none.

        A NaN never wins, nor does an unfinished run; of equals the earlier one is taken.
        """
        if mode not in {"min", "max"}:
            raise UsageError(f"There is no mode {mode!r}.", mend="Choose min or max.")
        with reported(self.settings):
            sign = 1.0 if mode == "min" else -1.0
            finished = [_info(run) for run in self._runs("attributes.status = 'FINISHED'")]
            ranked = [run for run in finished if not math.isnan(run.metrics.get(metric, math.nan))]
            return min(ranked, key=lambda run: (sign * run.metrics[metric], run.start_time, run.run_id), default=None)

    def list_runs(self, limit: int = 50) -> list[RunInfo]:
        """The newest runs of the experiment, newest first."""
        with reported(self.settings):
            runs = self._runs("", order_by=["attributes.start_time DESC"])
            return [_info(run) for run, _ in zip(runs, range(limit), strict=False)]

    def compare_runs(self, run_ids: Sequence[str]) -> pd.DataFrame:
        """One row a run (index: run id), with its name, status, seconds, ``params.*`` and ``metrics.*``."""
        import pandas as pd

        rows = {}
        for run in (self.get_run_info(run_id) for run_id in run_ids):
            seconds = (run.end_time - run.start_time).total_seconds() if run.end_time else math.nan
            facts: dict[str, Any] = {"name": run.name, "status": run.status, "seconds": seconds}
            facts |= {f"params.{name}": text for name, text in sorted(run.params.items())}
            facts |= {f"metrics.{name}": value for name, value in sorted(run.metrics.items())}
            rows[run.run_id] = facts
        return pd.DataFrame.from_dict(rows, orient="index")

    def _create_version(self, name: str, uri: str, run_id: str | None, description: str, tags: dict[str, str]) -> str:
        from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
        from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

        repository: Any = ModelsArtifactRepository
        if run_id is not None:
            uri = uri.replace(run_id, self._run(run_id).info.run_id, 1)
            run_id = self._run(run_id).info.run_id
            source = RunsArtifactRepository.get_underlying_uri(uri, self.settings.tracking_uri)
        elif repository.is_models_uri(uri):
            source = repository.get_underlying_uri(uri)
        else:
            source = uri
        made = self.client.create_model_version(
            name, source, run_id=run_id, tags=tags, description=description, await_creation_for=0
        )
        deadline = time.monotonic() + REGISTER_SECONDS
        while made.status == "PENDING_REGISTRATION":
            if time.monotonic() > deadline:
                raise ServiceError(f"The version {made.version} of {name} is not ready after {REGISTER_SECONDS} s.")
            time.sleep(1.0)
            made = self.client.get_model_version(name, made.version)
        if made.status == "FAILED_REGISTRATION":
            raise ServiceError(f"The server refused the version {made.version} of {name}: {made.status_message}.")
        return str(made.version)

    def _run(self, run: str) -> Any:
        from mlflow.exceptions import MlflowException

        from heimdall.tracking.sinks import KEY_TAG

        try:
            return self.client.get_run(run)
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
        if "'" not in run:
            everywhere = [experiment.experiment_id for experiment in self.client.search_experiments()]
            found = self.client.search_runs(everywhere, f"tags.`{KEY_TAG}` = '{run}'", max_results=1)
            if found:
                return found[0]
        raise UsageError(
            f"{self.settings.tracking_place} knows no run {run!r}.",
            mend="See `heimdall runs list`; a run that is not delivered yet shows in `heimdall status`.",
        )

    def _runs(self, condition: str, order_by: list[str] | None = None) -> Iterator[Any]:
        experiment = self.client.get_experiment_by_name(self.settings.mlflow_experiment_name)
        token = None if experiment else ""
        while token is None or token:
            page = self.client.search_runs(
                [experiment.experiment_id], condition, order_by=order_by, max_results=1000, page_token=token
            )
            yield from page
            token = page.token or ""


@contextmanager
def reported(settings: Settings) -> Iterator[None]:
    """Turn MLflow's and the network's errors into one sentence that names the server and holds no secret."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from heimdall.tracking.sinks import TransientError

    try:
        yield
    except (MlflowException, TransientError, SQLAlchemyError, OSError) as error:
        reason = logs.redact(" ".join(str(error).split()))[:300]
        raise ServiceError(
            f"The tracking server {settings.tracking_place} did not do it: {reason}",
            mend="See `heimdall doctor`.",
        ) from error


def _info(run: Any) -> RunInfo:
    from heimdall.tracking.sinks import KEY_TAG

    info, data = run.info, run.data
    return RunInfo(
        run_id=info.run_id,
        run_key=data.tags.get(KEY_TAG, ""),
        name=info.run_name or "",
        status=info.status,
        start_time=_time(info.start_time),
        end_time=_time(info.end_time) if info.end_time else None,
        params=dict(data.params),
        metrics=dict(data.metrics),
        tags=dict(data.tags),
        artifact_uri=info.artifact_uri,
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
