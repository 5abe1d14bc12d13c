"""Where things are: endpoints, credentials, folders. What is trained is said elsewhere, in a task's own config.

Order: argument > environment > ``*_FILE`` > ``.env`` > default. Read when :class:`Settings` is made, never at import.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from heimdall.errors import ConfigError

SECRETS_FROM_FILES = (
    "MLFLOW_S3_ACCESS_KEY_ID",
    "MLFLOW_S3_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_URI",
)
TRACKING_SCHEMES = ("http://", "https://", "sqlite://", "postgresql", "mysql", "mssql")


class Settings(BaseSettings):
    """Places and credentials. Secrets are :class:`~pydantic.SecretStr` and appear in no repr, log or error."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    heimdall_home: Path = Field(
        Path(".heimdall"),
        description="Folder kept between runs: journals, cache; database and artifacts where no server is set.",
    )
    mlflow_tracking_uri: SecretStr = Field(
        SecretStr(""),
        description="MLflow tracking: http(s)://… server, sqlite:///… or postgresql://… database; "
        "empty means SQLite in HEIMDALL_HOME.",
    )
    mlflow_artifact_uri: str = Field(
        "",
        description="Where artifacts of new experiments go (folder or s3://…); "
        "empty means a folder in HEIMDALL_HOME, or what the server says.",
    )
    mlflow_experiment_name: str = Field(
        "heimdall-localization", min_length=1, description="MLflow experiment that runs belong to."
    )
    mlflow_tracking_username: str = Field("", description="User name, where the MLflow server asks for one.")
    mlflow_tracking_password: SecretStr = Field(
        SecretStr(""), description="Password, where the MLflow server asks for one."
    )
    mlflow_s3_endpoint_url: str = Field("", description="S3 endpoint, for example http://minio:9000; empty means AWS.")
    mlflow_s3_access_key_id: SecretStr = Field(
        SecretStr(""), description="S3 access key; falls back to AWS_ACCESS_KEY_ID."
    )
    mlflow_s3_secret_access_key: SecretStr = Field(
        SecretStr(""), description="S3 secret key; falls back to AWS_SECRET_ACCESS_KEY."
    )
    heimdall_s3_region: str = Field("us-east-1", description="S3 region name.")
    heimdall_start_wait_seconds: float = Field(
        5.0, ge=0, description="How long the start of a run waits for MLflow's run id, in seconds."
    )
    heimdall_end_wait_seconds: float = Field(
        30.0, ge=0, description="How long the end of a run waits for delivery, in seconds."
    )
    heimdall_courier_linger_seconds: float = Field(
        3600.0, ge=0, description="How long delivery goes on in the background after a run has ended, in seconds."
    )

    heimdall_gates_file: str = Field(
        "", description="Gates that judge a promotion (TOML, YAML or JSON); empty takes those of the task."
    )

    @model_validator(mode="before")
    @classmethod
    def _secrets_from_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in SECRETS_FROM_FILES:
            path = os.environ.get(f"{name}_FILE")
            if path and name not in os.environ:
                try:
                    values[name.lower()] = Path(path).read_text(encoding="utf-8").strip()
                except OSError as error:
                    raise ConfigError(f"{name}_FILE names {path}, which cannot be read: {error.strerror}.") from error
        return values

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _name_the_driver(cls, uri: SecretStr) -> SecretStr:
        # SQLAlchemy 2.1 takes psycopg 3 for the bare scheme
        text = uri.get_secret_value()
        for bare in ("postgresql://", "postgres://"):
            if text.startswith(bare):
                return SecretStr("postgresql+psycopg2://" + text.removeprefix(bare))
        if text and not text.startswith(TRACKING_SCHEMES):
            raise ValueError("must start with http://, https://, sqlite:/// or postgresql://")
        return uri

    @property
    def home(self) -> Path:
        """:attr:`heimdall_home` as an absolute path."""
        return self.heimdall_home.expanduser().absolute()

    @property
    def tracking_uri(self) -> str:
        """The tracking URI to use, secrets and all: never print it, print :attr:`tracking_place`."""
        return self.mlflow_tracking_uri.get_secret_value() or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def tracking_place(self) -> str:
        """The tracking URI without its password, for people."""
        try:
            return make_url(self.tracking_uri).render_as_string(hide_password=True)
        except ArgumentError:
            return "an unreadable tracking URI"

    @property
    def artifact_root(self) -> str | None:
        """Artifact location for new experiments; None leaves it to the tracking server."""
        if self.mlflow_artifact_uri:
            return self.mlflow_artifact_uri
        return None if self.tracking_uri.startswith(("http://", "https://")) else str(self.home / "artifacts")

    @property
    def journal_dir(self) -> Path:
        """Folder that holds one journal a run."""
        return self.home / "journal"

    @property
    def cache_dir(self) -> Path:
        """Folder for what can be fetched or computed again."""
        return self.home / "cache"

    def s3_options(self) -> dict[str, str]:
        """Keyword arguments for ``boto3.client("s3", …)``: those that are set."""
        options = {
            "endpoint_url": self.mlflow_s3_endpoint_url,
            "aws_access_key_id": self.mlflow_s3_access_key_id.get_secret_value(),
            "aws_secret_access_key": self.mlflow_s3_secret_access_key.get_secret_value(),
            "region_name": self.heimdall_s3_region,
        }
        return {name: value for name, value in options.items() if value}

    def mlflow_environment(self) -> dict[str, str]:
        """Environment variables that MLflow's own client reads, for the process that imports it."""
        secret, key = (
            self.mlflow_s3_secret_access_key.get_secret_value(),
            self.mlflow_s3_access_key_id.get_secret_value(),
        )
        variables = {
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_TRACKING_USERNAME": self.mlflow_tracking_username,
            "MLFLOW_TRACKING_PASSWORD": self.mlflow_tracking_password.get_secret_value(),
            "MLFLOW_S3_ENDPOINT_URL": self.mlflow_s3_endpoint_url,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": self.heimdall_s3_region if key else "",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        return {name: value for name, value in variables.items() if value}
