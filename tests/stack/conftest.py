"""The stack that these tests share, from a clone's files alone, and what they measure on the way."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for _name in ("compose", "browser"):
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(f"{_name}.py"))
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])

import compose  # noqa: E402

PULL_SECONDS = 120
notes: list[str] = []


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the stack is made of and how fast it was: docs/reference/stack.md keeps these lines."""
    if notes:
        terminalreporter.section("stack")
        for note in notes:
            terminalreporter.write_line(note)


@pytest.fixture(scope="session")
def note() -> Any:
    """``note("sentence")``: shown at the end of the tests."""
    return notes.append


@pytest.fixture(scope="session")
def files() -> tuple[str, ...]:
    """Compose files: with another S3 server where MinIO's image cannot be had, and that is said."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.fail("No Docker engine answers; start one, or set DOCKER_HOST.")
    base = ("docker-compose.yml", f"{compose.HERE}/docker-compose.test.yml")
    text = (compose.REPOSITORY / "docker-compose.yml").read_text()
    image = os.environ.get("MINIO_IMAGE") or re.findall(r"\$\{MINIO_IMAGE:-(.+?)\}", text)[0]
    have = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0
    if not have:
        try:
            pull = ["docker", "pull", "--quiet", image]
            have = subprocess.run(pull, capture_output=True, check=False, timeout=PULL_SECONDS).returncode == 0
        except subprocess.TimeoutExpired:
            have = False
    if have:
        notes.append(f"object store: {image.split('@')[0]}")
        return base
    notes.append(f"object store: {image.split('@')[0]} cannot be had here: SeaweedFS (standin/s3) stands in its place")
    return (base[0], f"{compose.HERE}/docker-compose.s3.yml", base[1])


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots are kept."""
    folder = compose.REPOSITORY / "build" / "stack"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def built(files: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> compose.Stack:
    """A stack whose images are built; nothing runs."""
    stack = compose.Stack(f"heimdall-test-{os.getpid()}", tmp_path_factory.mktemp("stack"), files)
    started = time.monotonic()
    stack.compose("build", timeout=1500)
    notes.append(f"images built in {time.monotonic() - started:.0f} s (layers that were there already cost nothing)")
    for name in sorted(set(stack.compose("config", "--images").stdout.split())):
        size = int(stack.command("docker", "image", "inspect", "--format", "{{.Size}}", name).stdout)
        notes.append(f"image {name}: {size / 1e9:.2f} GB")
    return stack


@pytest.fixture(scope="session")
def stack(built: compose.Stack) -> Iterator[compose.Stack]:
    """The stack, up and healthy, with the training job of the compose file started."""
    started = time.monotonic()
    try:
        built.compose("up", "--detach", "--wait", "--wait-timeout", "600")
        notes.append(f"up to healthy: {time.monotonic() - started:.0f} s")

        def has_metric() -> bool:
            return any(run["data"].get("metrics") for run in built.runs())

        compose.wait_for(has_metric, "the first metric", 600)
        notes.append(f"up to the first metric in MLflow: {time.monotonic() - started:.0f} s")
        yield built
    finally:
        built.down("--volumes")
