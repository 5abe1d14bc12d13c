"""What the files say, before anything is started."""

from __future__ import annotations

import itertools
import json
import re
import stat
from pathlib import Path
from typing import Any

import compose
import pytest

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

OURS = {"postgres", "minio", "minio-init", "mlflow", "training"}
OPTIONAL = (
    "docker-compose.gpu.yml",
    f"{compose.HERE}/docker-compose.s3.yml",
    f"{compose.HERE}/docker-compose.test.yml",
)
REQUIRED = (
    "POSTGRES_PASSWORD",
    "MINIO_ROOT_USER",
    "MINIO_ROOT_PASSWORD",
    "MLFLOW_S3_ACCESS_KEY_ID",
    "MLFLOW_S3_SECRET_ACCESS_KEY",
)


@pytest.fixture
def plain(files: tuple[str, ...], tmp_path: Path) -> compose.Stack:
    return compose.Stack("heimdall-files", tmp_path, ("docker-compose.yml",))


def config(stack: compose.Stack, files: tuple[str, ...], *options: str) -> dict[str, Any]:
    ended = stack.compose(*options, "config", "--format", "json", COMPOSE_FILE=":".join(files))
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_every_combination_of_files_and_profiles_is_valid(plain: compose.Stack) -> None:
    profiles = plain.compose("config", "--profiles").stdout.split()
    for count in range(len(OPTIONAL) + 1):
        for extra in itertools.combinations(OPTIONAL, count):
            for chosen in ([], *[["--profile", name] for name in profiles], ["--profile", "*"]):
                found = config(plain, ("docker-compose.yml", *extra), *chosen)
                assert set(found["services"]) >= OURS
                resources = found["services"]["training"]["deploy"]["resources"]
                assert ("reservations" in resources) == ("docker-compose.gpu.yml" in extra)


def test_the_gpu_file_reserves_the_gpus_that_env_names(plain: compose.Stack) -> None:
    for said, meant in (("all", -1), ("2", 2)):
        plain.set(TRAINING_GPUS=said)
        found = config(plain, ("docker-compose.yml", "docker-compose.gpu.yml"))
        (device,) = found["services"]["training"]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
        assert int(device["count"]) == meant


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_secret_stops_with_its_name_and_the_mend(plain: compose.Stack, name: str) -> None:
    plain.set(**{name: ""})
    ended = plain.compose("up", check=False)
    assert ended.returncode != 0
    assert name in ended.stderr
    assert "make env" in ended.stderr


def test_a_fresh_env_has_secrets_of_its_own_that_only_its_owner_reads(plain: compose.Stack, tmp_path: Path) -> None:
    other = compose.Stack("heimdall-other", tmp_path, ("docker-compose.yml",))
    secret = [name for name in plain.settings if re.search(r"PASSWORD$|SECRET_KEY$|ACCESS_KEY(_ID)?$", name)]
    assert len(secret) == 7
    for name in secret:
        assert len(plain.settings[name]) >= 20
        assert plain.settings[name] != other.settings[name]
    assert stat.S_IMODE(plain.env_file.stat().st_mode) == 0o600


def test_make_env_never_overwrites(plain: compose.Stack) -> None:
    before = plain.env_file.read_text()
    ended = plain.command("scripts/make-env", str(plain.env_file), check=False)
    assert ended.returncode == 2
    assert "stays as it is" in ended.stderr
    assert plain.env_file.read_text() == before


def test_the_example_holds_no_usable_secret() -> None:
    text = (compose.REPOSITORY / ".env.example").read_text()
    values = re.findall(r"^[A-Z0-9_]*(?:PASSWORD|SECRET_KEY|ACCESS_KEY|ACCESS_KEY_ID)=(.*)$", text, flags=re.MULTILINE)
    assert len(values) == 7
    assert set(values) == {""}


def test_every_variable_of_the_compose_files_is_explained_in_the_example() -> None:
    explained = set(re.findall(r"^#?([A-Z0-9_]+)=", (compose.REPOSITORY / ".env.example").read_text(), re.MULTILINE))
    used: set[str] = set()
    for name in ("docker-compose.yml", "docker-compose.gpu.yml"):
        used |= set(re.findall(r"\$\{([A-Z0-9_]+)", (compose.REPOSITORY / name).read_text()))
    assert used - explained == {
        "MLFLOW_DB_UPGRADE",
        "PYTHON_IMAGE",
    }  # for one start, and for one build: on the command line


def test_nothing_listens_beyond_this_machine_and_postgres_nowhere(plain: compose.Stack) -> None:
    found = config(plain, ("docker-compose.yml",))
    published = {name: service.get("ports", []) for name, service in found["services"].items()}
    assert not published["postgres"]
    assert not published["training"]
    addresses = [port.get("host_ip") for ports in published.values() for port in ports]
    assert len(addresses) == 3
    assert set(addresses) == {"127.0.0.1"}
    assert found["networks"]["data"]["internal"]
    assert set(found["services"]["postgres"]["networks"]) == {"data"}
    assert set(found["services"]["training"]["networks"]) == {"service"}


def test_every_container_is_locked_limited_and_rotates_its_log(plain: compose.Stack) -> None:
    for name, service in config(plain, ("docker-compose.yml",))["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"], name
        assert service["restart"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert service["logging"]["options"]["max-size"], name


def test_a_port_that_is_taken_is_named_with_the_variable_to_change(
    built: compose.Stack, files: tuple[str, ...], tmp_path: Path
) -> None:
    import socket

    stack = compose.Stack(f"{built.name}-port", tmp_path, files)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        stack.set(MINIO_PORT=port)
        try:
            ended = stack.command("scripts/up", "minio", check=False)
        finally:
            stack.down("--volumes")
    assert ended.returncode == 69
    assert f"port {port} is taken" in ended.stderr
    assert "MINIO_PORT" in ended.stderr
