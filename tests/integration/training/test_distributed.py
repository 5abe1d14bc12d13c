"""Two processes train as one does: the same curve, the same end after a kill, one set of figures."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

Start = Callable[..., Any]

COMMAND = (
    "train toy --epochs 4 --samples 144 --logger csv --quiet --log-every-n-steps 1 --accelerator cpu "
    "--noise 0 --dropout 0 --checkpoint-every-n-steps 2 --resume auto"
)


def start_two(start: Start, output: Path, *more: object) -> list[Any]:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    words = [*COMMAND.split(), "--batch-size", 10, "--devices", 2, "--strategy", "ddp", "--output-dir", output, *more]
    return [start(*words, **group, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]


def table(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "lightning_logs" / "version_0" / "metrics.csv")


def weights(output: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two") / "out"


@pytest.fixture
def two(start: Start, kept: Path) -> Path:
    if not kept.exists():
        for command in start_two(start, kept):
            assert command.wait() == 0, command.errors
    return kept


def test_two_processes_learn_what_one_learns_with_the_same_global_batch(
    start: Start, two: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    command = start(*COMMAND.split(), "--batch-size", 20, "--output-dir", one)
    assert command.wait() == 0, command.errors
    expected, found = table(one), table(two)
    assert list(expected.columns) == list(found.columns)
    pd.testing.assert_frame_equal(expected, found, rtol=1e-4)


@pytest.mark.fault
def test_a_killed_process_ends_the_job_and_resume_goes_on_to_the_same_end(
    start: Start, two: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    first, second = start_two(start, output, "--step-seconds", 0.05)
    while not (output / "checkpoints" / "last.ckpt").exists():
        assert first.process.is_alive(), first.errors
        time.sleep(0.005)
    second.process.kill()
    assert first.wait(60) != 0
    for command in start_two(start, output, "--step-seconds", 0):
        assert command.wait() == 0, command.errors
    expected, found = weights(two), weights(output)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    pd.testing.assert_frame_equal(table(two), table(output))


@pytest.mark.fault
def test_a_signal_to_one_process_stops_all_after_a_checkpoint(start: Start, tmp_path: Path) -> None:
    output = tmp_path / "stopped"
    first, second = start_two(start, output, "--step-seconds", 0.05)
    while not (output / "checkpoints" / "last.ckpt").exists():
        assert first.process.is_alive(), first.errors
        time.sleep(0.005)
    second.process.terminate()
    assert {first.wait(60), second.wait(60)} == {128 + signal.SIGTERM}
    stored = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    assert 2 < stored["global_step"] < 20
    assert len(stored["heimdall"]["rank"]) == 2
