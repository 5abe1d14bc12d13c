"""A stack under docker compose of the tests' own: own project name, ports, secrets and volumes, removed at the end."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

import servers

REPOSITORY = Path(__file__).parents[2]
HERE = "tests/stack"
SERVICES = ("postgres", "minio", "minio-init", "mlflow")
BUCKETS = ("heimdall-mlflow", "heimdall-models", "heimdall-datasets", "heimdall-raw-iq")
EXPERIMENT = "heimdall-localization"


def wait_for(check: Callable[[], Any], what: str, timeout_seconds: float = 180.0) -> Any:
    """Poll ``check`` until it returns something true, and return that; errors count as not yet."""
    deadline, last = time.monotonic() + timeout_seconds, None
    while time.monotonic() < deadline:
        try:
            if found := check():
                return found
        except (OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
            last = error
        time.sleep(0.5)
    raise TimeoutError(f"{what}: not within {timeout_seconds:.0f} s ({last!r})")


class Stack:
    """``docker compose`` on one project."""

    def __init__(self, name: str, folder: Path, files: tuple[str, ...]) -> None:
        self.name = name
        self.folder = folder
        self.env_file = folder / f"{name}.env"
        self.environment = {key: os.environ[key] for key in os.environ if key.startswith(("DOCKER", "PATH", "HOME"))}
        self.environment |= {
            "COMPOSE_PROJECT_NAME": name,
            "COMPOSE_FILE": ":".join(files),
            "COMPOSE_ENV_FILES": str(self.env_file),
            "COMPOSE_ANSI": "never",
        }
        subprocess.run(["scripts/make-env", str(self.env_file)], cwd=REPOSITORY, check=True, capture_output=True)
        ports = {f"{service}_PORT": str(servers.free_port()) for service in ("MLFLOW", "MINIO", "MINIO_CONSOLE")}
        self.set(**ports)

    @property
    def settings(self) -> dict[str, str]:
        """What the .env file of this stack says."""
        lines = (line for line in self.env_file.read_text().splitlines() if re.match(r"[A-Z0-9_]+=", line))
        return dict(line.split("=", 1) for line in lines)

    def set(self, **values: str) -> None:
        """Change the .env file."""
        text = self.env_file.read_text()
        for key, value in values.items():
            text = re.sub(rf"^{key}=.*$", f"{key}={value}", text, flags=re.MULTILINE)
        self.env_file.write_text(text)

    def command(
        self, *arguments: str, check: bool = True, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run any command as somebody does who works with this stack."""
        ended = subprocess.run(
            arguments,
            cwd=REPOSITORY,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and ended.returncode:
            raise AssertionError(f"{arguments} ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr[-6000:]}")
        return ended

    def compose(
        self, *arguments: str, check: bool = True, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        # --env-file too: older releases of Compose do not know COMPOSE_ENV_FILES
        words = ("docker", "compose", "--env-file", str(self.env_file), *arguments)
        return self.command(*words, check=check, timeout=timeout, **environment)

    def run(self, *words: str, check: bool = True, timeout: float = 600, **environment: str) -> Any:
        """Another job in the training container, beside servers that stay as they are."""
        return self.compose(
            "run", "--rm", "--no-deps", "-T", "training", *words, check=check, timeout=timeout, **environment
        )

    def down(self, *options: str) -> None:
        """Remove the containers; what they said stays in build/stack.log."""
        log = REPOSITORY / "build" / "stack.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("a") as file:
            file.write(self.compose("logs", "--no-color", "--timestamps", check=False).stdout)
        self.compose("down", "--remove-orphans", "--timeout", "5", *options)

    def state(self, service: str) -> dict[str, Any]:
        """``docker inspect`` of a service's container."""
        identifier = self.compose("ps", "--all", "--quiet", service).stdout.split()[0]
        found: list[dict[str, Any]] = json.loads(self.command("docker", "inspect", identifier).stdout)
        return found[0]

    def is_healthy(self, service: str) -> bool:
        return bool(self.state(service)["State"]["Health"]["Status"] == "healthy")

    def kill(self, service: str) -> None:
        """End the main process from the host, as a crash would: `docker kill` would not make Docker start it again."""
        before = self.state(service)
        os.kill(before["State"]["Pid"], 9)
        wait_for(
            lambda: self.state(service)["State"]["StartedAt"] != before["State"]["StartedAt"], f"{service} starts again"
        )

    def sql(self, statement: str) -> str:
        user, name = self.settings["POSTGRES_USER"], self.settings["POSTGRES_DB"]
        words = ("exec", "-T", "postgres", "psql", "-h", "127.0.0.1", "-U", user, "-d", name, "-qAt", "-c", statement)
        return self.compose(*words, PGPASSWORD=self.settings["POSTGRES_PASSWORD"]).stdout.strip()

    def s3(self, *, root: bool = False) -> Any:
        """A client on this machine, as the limited user of training or as the store's administrator."""
        names = ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD")
        if not root:
            names = ("MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY")
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.settings['MINIO_PORT']}",
            aws_access_key_id=self.settings[names[0]],
            aws_secret_access_key=self.settings[names[1]],
            region_name="us-east-1",
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings['MLFLOW_PORT']}"

    def api(self, path: str, body: dict[str, Any] | None = None, account: tuple[str, str] | None = None) -> Any:
        """MLflow's REST API, without MLflow's client."""
        request = urllib.request.Request(f"{self.url}/api/2.0/mlflow/{path}")  # noqa: S310 - loopback
        if body is not None:
            request.data, request.headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        if account:
            request.add_header("Authorization", "Basic " + base64.b64encode(":".join(account).encode()).decode())
        with urllib.request.urlopen(request, timeout=20) as reply:  # noqa: S310
            return json.load(reply)

    def runs(self) -> list[dict[str, Any]]:
        """Runs of the localization experiment, newest first."""
        try:
            found = self.api(f"experiments/get-by-name?experiment_name={EXPERIMENT}")["experiment"]["experiment_id"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return []
            raise
        reply = self.api("runs/search", {"experiment_ids": [found], "order_by": ["attributes.start_time DESC"]})
        return list(reply.get("runs", []))

    def history(self, run_id: str, metric: str) -> list[dict[str, Any]]:
        """All values of a metric."""
        reply = self.api(f"metrics/get-history?run_id={run_id}&metric_key={metric}&max_results=25000")
        return list(reply.get("metrics", []))
