"""How long a person waits: for help, and from ``heimdall train`` to the first step, beyond what the libraries take."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import Table

LIBRARIES = "import torch, lightning.pytorch"
FIRST_STEP = """
import os, sys
from heimdall.commands import train  # what the command line imports before it knows what to do
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
_TrainingEpochLoop.on_advance_end = lambda *_: os._exit(0)
from heimdall.cli import main
main(sys.argv[1:])
"""


def seconds(command: list[str], folder: Path, rounds: int) -> float:
    """Median time of a child process."""
    home = {"HEIMDALL_HOME": str(folder / "home"), "PYTHONDONTWRITEBYTECODE": ""}
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, env={**os.environ, **home}, check=True, capture_output=True, cwd=folder)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.mark.benchmark
def test_heimdall_starts_at_once(tmp_path: Path, bench_table: Callable[..., Table], full_bench: bool) -> None:
    rounds = 3 if full_bench else 1
    table = bench_table(
        "Start",
        ["what", "median, s", "beyond the libraries, s"],
        "The sample data of the localization task is simulated and its features are cached; a run begins, its journal "
        "and its courier included. The libraries are torch and lightning.",
    )
    table.row("python -c pass", seconds([sys.executable, "-c", "pass"], tmp_path, rounds), "")
    table.row("heimdall --help", seconds([sys.executable, "-m", "heimdall.cli", "--help"], tmp_path, rounds), "")
    libraries = seconds([sys.executable, "-c", LIBRARIES], tmp_path, rounds)
    table.row("import torch, lightning", libraries, 0.0)
    sessions = "1500" if full_bench else "40"
    words = ["train", "localization", "--backbone", "COMPACT", "--sample-sessions", sessions, "--quiet"]
    train = [sys.executable, "-c", FIRST_STEP, *words]
    seconds(train, tmp_path, 1)  # simulates the sample data
    whole = seconds(train, tmp_path, rounds)
    table.row("heimdall train, to the end of the first step", whole, whole - libraries)
