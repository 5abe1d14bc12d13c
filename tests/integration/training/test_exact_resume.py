"""A run that was stopped or killed, and resumed, is to the bit the run that was not."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.tracking.client import MlflowClient

from heimdall.settings import Settings
from heimdall.tracking.queries import RunQueries

ROUNDS = int(os.environ.get("HEIMDALL_FAULT_ROUNDS", "2"))
BATCHES, EPOCHS = 7, 5  # 144 samples: 100 to train on
ARGUMENTS = (
    f"train toy --epochs {EPOCHS} --samples 144 --batch-size 16 --logger csv --quiet --patience-metric "
    "--checkpoint-every-n-steps 2 --log-every-n-steps 1 --step-seconds 0.02 --resume auto"
).split()

Start = Callable[..., Any]


def final_state(output: Path) -> dict[str, torch.Tensor]:
    stored = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    optimizer = stored["optimizer_states"][0]["state"]
    moments = {f"{index}.{name}": torch.as_tensor(v) for index, s in optimizer.items() for name, v in s.items()}
    return {**stored["state_dict"], **moments}


def table(output: Path) -> Path:
    return output / "lightning_logs" / "version_0" / "metrics.csv"


def points(output: Path) -> dict[str, list[tuple[int, float]]]:
    rows = pd.read_csv(table(output))
    names = [name for name in rows.columns if name not in {"epoch", "step"}]
    return {n: list(rows[["step", n]].dropna().itertuples(index=False, name=None)) for n in names}


def rows_written(output: Path) -> int:
    return len(table(output).read_bytes().splitlines()) if table(output).exists() else 0


def last_step(output: Path) -> int:
    rows = table(output).read_text().splitlines() if table(output).exists() else []
    return int(rows[-1].split(",")[1]) if len(rows) > 1 else -1


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"output": tmp_path_factory.mktemp("whole") / "out"}


@pytest.fixture
def uninterrupted(whole: dict[str, Path], start: Start) -> Path:
    output = whole["output"]
    if not output.exists():
        command = start(*ARGUMENTS, "--output-dir", output)
        assert command.wait() == 0, command.errors
    return output


def assert_same(output: Path, uninterrupted: Path) -> None:
    expected, found = final_state(uninterrupted), final_state(output)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert points(output) == points(uninterrupted)  # no gap, no second point, the same values


@pytest.mark.fault
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_kill_9_at_a_random_moment_changes_nothing(
    seed: int, uninterrupted: Path, start: Start, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    chance = random.Random(seed)
    command = start(*ARGUMENTS, "--output-dir", output)
    wanted = chance.randint(0, rows_written(uninterrupted) - 2)
    while command.process.is_alive() and rows_written(output) <= wanted:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.04))
    command.process.kill()
    command.process.join()
    again = start(*ARGUMENTS, "--output-dir", output)
    assert again.wait() == 0, again.errors
    assert_same(output, uninterrupted)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("number", "code", "in_validation"), [(signal.SIGTERM, 143, True), (signal.SIGINT, 130, False)]
)
def test_a_signal_saves_at_the_next_batch_and_the_resumed_run_is_the_same(
    number: signal.Signals, code: int, in_validation: bool, uninterrupted: Path, start: Start, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    slow = ["--validation-seconds", 0.5] if in_validation else []
    command = start(*ARGUMENTS, "--output-dir", output, *slow)
    wanted = 2 * BATCHES - 1 if in_validation else BATCHES + 2
    while last_step(output) < wanted:
        assert command.process.is_alive(), command.errors
        time.sleep(0.002)
    time.sleep(0.2 if in_validation else 0)
    os.kill(command.pid, number)
    assert command.wait() == code, command.errors
    assert re.search(r"Continue with: \S*heimdall train toy --resume", command.errors), command.errors
    assert json.loads((output / "run.json").read_text())["status"] == "stopped"
    step = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert step == 2 * BATCHES if in_validation else wanted < step < 2 * BATCHES
    again = start("train", "toy", "--resume", output, "--validation-seconds", 0)
    assert again.wait() == 0, again.errors
    assert_same(output, uninterrupted)


@pytest.mark.fault
def test_a_damaged_last_checkpoint_is_passed_over_and_reported(
    uninterrupted: Path, start: Start, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = start(*ARGUMENTS, "--output-dir", output)
    while last_step(output) < 2 * BATCHES + 3:
        assert command.process.is_alive(), command.errors
        time.sleep(0.002)
    command.process.kill()
    command.process.join()
    last = output / "checkpoints" / "last.ckpt"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    last.unlink()
    last.write_bytes(damaged)
    again = start(*ARGUMENTS, "--output-dir", output)
    assert again.wait() == 0, again.errors
    assert "damaged checkpoint passed over" in again.errors
    assert "last.ckpt" in again.errors
    assert_same(output, uninterrupted)


@pytest.mark.fault
def test_a_run_goes_on_on_a_machine_that_has_only_its_id(
    uninterrupted: Path, start: Start, tmp_path: Path, mlflow_server: Any, s3: Any
) -> None:
    server = {"MLFLOW_TRACKING_URI": mlflow_server.url, **s3.environment()}
    tracked = [*ARGUMENTS, "--logger", "mlflow", "--resume", "", "--no-register", "--publish-checkpoints", "all"]
    first = tmp_path / "first"
    command = start(*tracked, "--output-dir", first, HEIMDALL_HOME=str(tmp_path / "home-1"), **server)
    while not list((first / "checkpoints").glob(f"epoch*-step*{2 * BATCHES}.ckpt")):
        assert command.process.is_alive(), command.errors
        time.sleep(0.002)
    time.sleep(0.1)
    command.process.kill()
    command.process.join()
    delivered = start("sync", "--all", HEIMDALL_HOME=str(tmp_path / "home-1"), **server)
    assert delivered.wait() == 0, delivered.errors
    client = MlflowClient(mlflow_server.url)
    run_id = json.loads((first / "run.json").read_text())["run_id"]
    run_id = RunQueries(Settings(mlflow_tracking_uri=mlflow_server.url)).resolve_run_id(run_id)
    assert client.get_run(run_id).info.status == "FAILED"

    again = start("train", "toy", "--resume", run_id, HEIMDALL_HOME=str(tmp_path / "home-2"), **server)
    assert again.wait() == 0, again.errors
    expected, found = final_state(uninterrupted), final_state(again.folder / "outputs" / "toy" / run_id)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert client.get_run(run_id).info.status == "FINISHED"
    for name, values in points(uninterrupted).items():
        history = [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        assert sorted(history) == sorted(values), name  # no gap, no second point


def test_a_run_without_checkpoints_among_its_artifacts_says_what_to_do(heimdall: Start, tmp_path: Path) -> None:
    place = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    done = heimdall(*["train", "toy", "--epochs", "1", "--samples", "32", "--quiet", "--no-register"], **place)
    assert done.wait() == 0, done.errors
    settings = Settings(mlflow_tracking_uri=place["MLFLOW_TRACKING_URI"], mlflow_experiment_name="heimdall-toy")
    (run,) = RunQueries(settings).list_runs()
    again = heimdall("train", "toy", "--resume", run.run_id, **place)
    assert again.wait() == 2
    assert "--publish-checkpoints all" in again.errors
