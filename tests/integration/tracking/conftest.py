"""Servers of the fault tests' own, to be killed, and what drives trainers against them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location("rig", Path(__file__).with_name("rig.py"))
assert _spec is not None
assert _spec.loader is not None
rig_module = importlib.util.module_from_spec(_spec)
sys.modules["rig"] = rig_module
_spec.loader.exec_module(rig_module)


class Site:
    """PostgreSQL, S3 and MLflow behind a proxy, each to be ill-treated."""

    def __init__(self, make_folder: Any) -> None:
        import proxy
        import servers

        self.postgres = servers.Postgres()
        self.postgres.start()
        self.s3 = servers.S3(make_folder("s3"))
        self.s3.start()
        root = f"s3://{self.s3.make_bucket()}/artifacts"
        self.mlflow = servers.MLflowServer(make_folder("mlflow"), self.postgres.make_database(), root, self.s3)
        self.mlflow.start()
        self.proxy = proxy.Proxy(self.mlflow.port)

    def revive(self) -> None:
        """Start whatever a test has left dead."""
        self.proxy.set("pass")
        for server in (self.postgres, self.s3, self.mlflow):
            if server.server.process is None:
                server.start()

    def stop(self) -> None:
        self.proxy.stop()
        for server in (self.mlflow, self.s3):
            server.kill()
        self.postgres.remove()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp)
    yield made
    made.stop()


@pytest.fixture
def rig(site: Site, tmp_path: Path) -> Iterator[Any]:
    home = tmp_path / "home"
    home.mkdir()
    environment = {"MLFLOW_TRACKING_URI": site.proxy.url, **site.s3.environment()}
    made = rig_module.Rig(home, environment, site.mlflow.url, site.s3)
    yield made
    made.stop_all()
    site.revive()
