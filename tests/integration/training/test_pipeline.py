"""The whole pipeline on the toy task, as its users start it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

Run = Callable[..., Any]
SHORT = ["train", "toy", "--epochs", "2", "--samples", "64", "--no-register"]


def everything_there(output: Path) -> None:
    assert (output / "checkpoints" / "last.ckpt").exists()
    assert list((output / "checkpoints").glob("epoch*-step*.ckpt"))
    assert (output / "bundle" / "model.safetensors").exists()
    assert (output / "report" / "history.json").exists()
    assert json.loads((output / "run.json").read_text())["status"] == "finished"


def test_csv(heimdall: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = heimdall(*SHORT, "--output-dir", output, "--logger", "csv", "--log-every-n-steps", 1)
    assert command.wait() == 0, command.errors
    assert command.errors == ""
    everything_there(output)
    rows = pd.read_csv(output / "lightning_logs" / "version_0" / "metrics.csv")
    assert rows["train/loss_step"].notna().sum() == 2 * 3
    assert rows["train/loss_epoch"].notna().sum() == rows["val/loss"].notna().sum() == 2
    assert rows["test/mae"].notna().sum() == 1
    assert rows["report/mae"].dropna().tolist() == pytest.approx(rows["test/mae"].dropna().tolist(), rel=1e-5)
    assert yaml.safe_load((output / "lightning_logs" / "version_0" / "hparams.yaml").read_text())["epochs"] == 2
    assert "network" in command.output
    assert f"Everything is in {output}" in command.output
    assert "heimdall ui" not in command.output

    again = heimdall(*SHORT, "--output-dir", output, "--logger", "csv")
    assert again.wait() == 0, again.errors
    assert (output / "lightning_logs" / "version_1" / "metrics.csv").exists()
    assert (output / "earlier" / "1" / "checkpoints" / "last.ckpt").exists()
    everything_there(output)


def test_none_and_quiet_say_nothing_and_leave_no_logs(heimdall: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = heimdall(*SHORT, "--output-dir", output, "--logger", "none", "--quiet")
    assert command.wait() == 0, command.errors
    assert (command.output, command.errors) == ("", "")
    everything_there(output)
    assert not (output / "lightning_logs").exists()


def test_the_old_flag_acts_as_none_and_quiet_and_warns(heimdall: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = heimdall(*SHORT, "--output_dir", output, "--disable_mlflow")
    assert command.wait() == 0
    assert command.output == ""
    assert command.errors == (
        "DeprecationWarning: --disable_mlflow is deprecated. "
        "Use --logger none to disable logging and --quiet to suppress progress bars.\n"
    )
    everything_there(output)
    assert not (output / "lightning_logs").exists()


def test_tensorboard(heimdall: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "out"
    command = heimdall(*SHORT, "--output-dir", output, "--logger", "tensorboard", "--log-every-n-steps", 1)
    assert command.wait() == 0, command.errors
    everything_there(output)
    events = EventAccumulator(str(output / "lightning_logs" / "version_0"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss_step")] == list(range(6))
    assert [event.step for event in events.Scalars("test/mae")] == [5]


def test_mlflow_gets_one_whole_run_a_run_even_if_it_was_killed(start: Run, heimdall: Run, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    output, home = tmp_path / "out", tmp_path / "home"
    words = [*SHORT, "--epochs", 4, "--output-dir", output, "--log-every-n-steps", 1, "--resume", "auto"]
    first = start(*words, "--step-seconds", 0.15, "--run-name", "mine", HEIMDALL_HOME=str(home))
    while not list((output / "checkpoints").glob("epoch001-*")):
        assert first.process.is_alive(), first.errors
    first.process.kill()
    first.process.join()
    second = heimdall(*words, HEIMDALL_HOME=str(home))
    assert second.wait() == 0, second.errors
    everything_there(output)
    record = json.loads((output / "run.json").read_text())
    assert f"heimdall ui --run {record['run_id']}" in second.output

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("heimdall-toy")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(record["run_id"], "FINISHED")]
    assert runs[0].info.run_name == "mine"
    params = runs[0].data.params
    assert params["learning_rate"] == "0.001"
    assert len(params["data/digest"]) == 64
    assert {"git/commit", "host/name", "version/torch"} <= params.keys()
    for name, steps in {"train/loss_step": range(12), "val/loss": (2, 5, 8, 11), "test/mae": (11,)}.items():
        assert [m.step for m in client.get_metric_history(record["run_id"], name)] == list(steps), name
    paths = {entry.path for entry in client.list_artifacts(record["run_id"])}
    assert {"report", "bundle", "checkpoints"} <= paths


@pytest.mark.parametrize(("flags", "status"), [(["--fail-at-step", 4], "FAILED"), ([], "KILLED")])
def test_a_run_that_does_not_finish_says_so(flags: list[Any], status: str, start: Run, tmp_path: Path) -> None:
    import os
    import signal

    from mlflow import MlflowClient

    home = tmp_path / "home"
    command = start(*SHORT, "--step-seconds", 0.1, "--output-dir", tmp_path / "out", *flags, HEIMDALL_HOME=str(home))
    if status == "KILLED":
        while not (tmp_path / "out" / "checkpoints" / "last.ckpt").exists():
            assert command.process.is_alive(), command.errors
        os.kill(command.pid, signal.SIGTERM)
    assert command.wait() == (143 if status == "KILLED" else 1)
    assert "Traceback" not in command.errors
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("heimdall-toy")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == [status]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(heimdall: Run, tmp_path: Path) -> None:
    weights = []
    for number, seed in enumerate((7, 7, 8)):
        output = tmp_path / str(number)
        command = heimdall(*SHORT, "--output-dir", output, "--logger", "none", "--quiet", "--seed", seed)
        assert command.wait() == 0, command.errors
        weights.append(torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_only_the_best_are_kept_and_a_finished_run_can_be_trained_longer(heimdall: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = [*SHORT, "--logger", "csv", "--quiet", "--save-top-k", 2]
    assert heimdall(*words, "--epochs", 4, "--output-dir", output).wait() == 0
    again = heimdall("train", "toy", "--resume", output, "--epochs", 6)
    assert again.wait() == 0, again.errors
    table = pd.read_csv(output / "lightning_logs" / "version_0" / "metrics.csv")
    by_epoch = table.dropna(subset=["val/loss"]).set_index("epoch")["val/loss"]
    assert list(by_epoch.index) == list(range(6))
    kept = sorted(int(path.name[5:8]) for path in (output / "checkpoints").glob("epoch*-step*.ckpt"))
    assert kept == sorted(by_epoch.nsmallest(2).index)
