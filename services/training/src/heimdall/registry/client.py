"""The one way from the registry to MLflow: connect fast or say why not, and turn vendor errors into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from heimdall.errors import DataError, HeimdallError, ServiceError
from heimdall.logs import redact
from heimdall.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MISSING = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
REFUSED = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST"}


def connect(settings: Settings) -> MlflowClient:
    """A client for the tracking server and registry that ``settings`` name.

    It tries nothing twice behind our back: what is safe to repeat is for the command to know, not for a retry loop.
    Raises :class:`ServiceError` where a database does not answer; a server is asked only by the first call.
    """
    from heimdall.tracking.mlflow_sink import make_client

    with asking(settings, "answer"):
        make_client(settings)  # sets the environment; a database that does not answer is noticed at once
        import mlflow

        # the global URIs too: MLflow's SQL store looks there when a version is made from a logged model, and parts of
        # MLflow set the registry's for the whole process
        mlflow.set_tracking_uri(settings.tracking_uri)
        mlflow.set_registry_uri(settings.tracking_uri)
        return mlflow.MlflowClient(settings.tracking_uri, registry_uri=settings.tracking_uri)


@contextmanager
def asking(settings: Settings, what: str) -> Iterator[None]:
    """Turn what MLflow, its database or the object store raise inside the block into one sentence.

    ``what`` completes "The registry at … failed to …". Raises :class:`DataError` for what is missing or refused,
    :class:`ServiceError` for everything else, which may be tried again.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    from heimdall.tracking.sinks import TransientError

    try:
        yield
    except HeimdallError:
        raise
    except (
        MlflowException,
        TransientError,
        RequestException,
        SQLAlchemyError,
        BotoCoreError,
        ClientError,
        OSError,
    ) as error:
        code = getattr(error, "error_code", "")
        reason = redact(str(error).strip().splitlines()[0][:300]) if str(error).strip() else type(error).__name__
        message = f"The registry at {settings.tracking_place} failed to {what}: {reason}"
        if code in MISSING or code in REFUSED:
            raise DataError(message) from error
        raise ServiceError(
            message, mend="Once it answers (heimdall doctor), run the same command again: it takes up where it stopped."
        ) from error


def experiment_id(client: MlflowClient, settings: Settings, name: str) -> str:
    """Id of the experiment ``name``, made where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        root = settings.artifact_root
        location = None if root is None else f"{root.rstrip('/')}/{name}"
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise DataError(
            f"The experiment {name!r} has been deleted.",
            mend=f"Restore it: mlflow experiments restore -x {found.experiment_id}",
        )
    return str(found.experiment_id)


def version_or_none(client: MlflowClient, name: str, version: str) -> ModelVersion | None:
    """The model version, or None where it was deleted or never there."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code in MISSING or error.error_code in REFUSED:
            return None
        raise


def alias_target(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The model version that ``alias`` names, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in MISSING or error.error_code in REFUSED:
            return None
        raise
