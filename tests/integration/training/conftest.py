"""Training as its users start it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import toy_task
from child import Command, Start, start_command


@pytest.fixture(scope="session")
def toy_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a process in which the toy task is installed and nothing else of ours is set."""
    home = tmp_path_factory.mktemp("home")
    ours = ("HEIMDALL_", "MLFLOW_", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, **toy_task.install(home / "installed"), "HEIMDALL_HOME": str(home / "heimdall")}


@pytest.fixture
def start(toy_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start ``heimdall ARGUMENTS`` in the background; ends with the test."""
    running: list[Command] = []

    def begin(*arguments: object, work: Path | None = None, **variables: str) -> Command:
        folder = tmp_path_factory.mktemp("command")
        environment = {**toy_environment, **variables}
        paths = toy_environment["PYTHONPATH"].split(":")
        words = [str(word) for word in arguments]
        running.append(start_command(words, environment, paths, folder, work or folder))
        return running[-1]

    yield begin
    for command in running:
        with suppress(ProcessLookupError):
            command.process.kill()
        command.process.join()


@pytest.fixture
def heimdall(start: Start) -> Start:
    """Run ``heimdall ARGUMENTS`` to its end."""

    def run(*arguments: object, **how: object) -> Command:
        command = start(*arguments, **how)
        command.wait()
        return command

    return run
