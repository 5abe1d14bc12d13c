from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_where_a_server_is_configured_its_page_of_the_run_is_named(heimdall: Run) -> None:
    command = heimdall("ui", "--run", "abc123", MLFLOW_TRACKING_URI="http://me:hunter22@tracking:5000")
    assert command.wait() == 0, command.errors
    assert "tracking:5000/#/runs/abc123" in command.output
    assert "hunter22" not in command.output


def test_a_run_that_has_not_arrived_is_not_looked_for(heimdall: Run) -> None:
    command = heimdall("ui", "--run", "hd-20260101-000000-abc")
    assert command.wait() == 2
    assert "heimdall sync" in command.errors


@pytest.mark.slow
def test_the_page_answers_on_this_machine_alone(toy_environment: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "heimdall.cli", "ui", "--port", str(port), "--no-open"]
    environment = {**toy_environment, "HEIMDALL_HOME": str(tmp_path)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = ""
        deadline = time.monotonic() + 120
        while "Ready" not in said and time.monotonic() < deadline:
            said += server.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert "MLflow" in page.read().decode()
        server.send_signal(2)
        assert server.wait(60) == 0
