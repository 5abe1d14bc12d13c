"""Fixtures shared by all tests: real servers, started once a worker when first asked for, stopped at the end."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def _beside(name: str) -> Any:
    """A plain module beside this file, importable by its name under --import-mode=importlib."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


servers = _beside("servers")
proxy = _beside("proxy")

FOREIGN = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "DATABASE_URL",
    "PGPASSWORD",
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test sees the settings of whoever runs it or of the test before it, and none writes outside its own folder."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "HEIMDALL_"))]:
        if name not in {"HEIMDALL_FAULT_ROUNDS", "HEIMDALL_BENCH_GIB"}:
            monkeypatch.delenv(name)
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HEIMDALL_HOME", str(tmp_path / "heimdall-home"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield
    os.environ.clear()  # MLflow's client is told by the environment where its server is
    os.environ.update(before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server of this worker's own (:class:`servers.Postgres`)."""
    server = servers.Postgres()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def make_database(postgres: Any) -> Callable[[], str]:
    """``make_database()`` returns the URL of a fresh, empty database."""
    return lambda: str(postgres.make_database())


@pytest.fixture
def postgres_url(make_database: Callable[[], str]) -> str:
    """URL of a fresh, empty database, one a test."""
    return make_database()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An S3 server (:class:`servers.S3`): ``endpoint``, ``access_key``, ``secret_key``, ``make_bucket()``."""
    server = servers.S3(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def make_mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, make_database: Callable[[], str], s3: Any
) -> Iterator[Callable[..., Any]]:
    """``make_mlflow_server(proxied=False, backend=None)``: a started MLflow server of one's own, to be ill-treated."""
    made: list[Any] = []

    def make(*, proxied: bool = False, backend: str | None = None) -> Any:
        folder = tmp_path_factory.mktemp("mlflow")
        root = f"s3://{s3.make_bucket()}/artifacts"
        server = servers.MLflowServer(folder, backend or make_database(), root, s3, proxied=proxied)
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        server.kill()


@pytest.fixture(scope="session")
def mlflow_server(make_mlflow_server: Callable[..., Any]) -> Any:
    """The worker's MLflow server on PostgreSQL with artifacts in S3: ``.url``, ``.artifact_root``. Do not stop it."""
    return make_mlflow_server()
