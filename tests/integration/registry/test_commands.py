"""The commands as a person uses them, on SQLite."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from heimdall.registry.client import connect
from heimdall.settings import Settings

NAME = "heimdall-beacon"


@pytest.fixture
def trained_run(local: Settings, beacon: Any) -> Callable[..., str]:
    """``trained_run(skill, loss)``: a run as the training pipeline leaves it, artifacts and all."""

    def make(skill: float, loss: float) -> str:
        from heimdall.registry.client import experiment_id

        trained, client = beacon(skill), connect(local)
        experiment = experiment_id(client, local, local.mlflow_experiment_name)
        run = client.create_run(experiment, run_name=f"skill {skill}", tags={"heimdall.task": "beacon"}).info.run_id
        client.log_param(run, "data_dir", str(trained.folder.parent / "train"))
        client.log_param(run, "epochs", "3")
        for step, value in enumerate([3 * loss, 2 * loss, loss]):
            client.log_metric(run, "val/loss", value, step=step)
        client.log_artifact(run, str(trained.checkpoint), "checkpoints")
        client.log_artifact(run, str(trained.report.files[0]), "report")
        client.set_terminated(run)
        return str(run)

    return make


@pytest.mark.slow
def test_from_the_best_run_to_a_map_of_predictions(
    heimdall: Any, trained_run: Any, beacon: Any, gates: Path, tmp_path: Path
) -> None:
    worse, best = trained_run(0.9, 0.5), trained_run(1.0, 0.4)
    assert json.loads(heimdall("runs", "best", "--json"))["run_id"] == best
    listed = heimdall("runs", "list")
    assert worse in listed
    assert "skill 0.9" in listed
    picture = tmp_path / "curves.png"
    compared = heimdall("runs", "compare", worse, best, "--picture", str(picture))
    assert "data_dir" not in json.dumps(compared.split("\n")[:3])
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "val/loss" in heimdall("runs", "show", best)
    by_name = json.loads(heimdall("runs", "compare", "skill 0.9", best[:8], "--json"))
    assert [run["run_id"] for run in by_name] == [worse, best]

    heimdall("models", "register", worse)
    assert "version 2" in heimdall("models", "register", "--run", "best", "--metric", "val/loss")
    assert "version 2" in heimdall("models", "register", "--run", "best")  # again: the same one

    data = str(beacon().folder)
    assert "PROMOTE" in heimdall("models", "promote", NAME, "1", "--gates", gates, "--data", data)
    strict = tmp_path / "strict.toml"
    strict.write_text('[[metrics]]\nmetric = "error/median_deg"\nlimit = 0.0001\n')
    shown = heimdall("models", "promote", NAME, "2", "--gates", strict, "--data", data, code=3)
    assert "HOLD" in shown
    assert "FAIL" in shown
    assert re.search(r"error/median_deg is 0\.\d+, asked for: at most 0.0001", heimdall.err)
    heimdall("models", "promote", NAME, "2", "--gates", strict, "--data", data, "--force", code=2)
    assert "needs a reason" in heimdall.err
    heimdall("models", "promote", NAME, "2", "--gates", strict, "--data", data, "--force", "--reason", "a [bold] step")
    assert "version 2 → 1" in heimdall("models", "rollback", NAME)
    verdicts = [entry["verdict"] for entry in json.loads(heimdall("models", "history", NAME, "--json"))]
    assert verdicts == ["PROMOTE", "HOLD", "FORCED", "ROLLBACK"]
    assert "a [bold] step" in heimdall("models", "history", NAME)
    assert json.loads(heimdall("models", "list", "--json"))[1]["aliases"] == ["champion"]

    uri = f"models:/{NAME}@champion"
    told = heimdall(
        "predict", "--model", uri, "--input", data, "--output", "out.parquet", "--batch-size", "7", "--compare"
    )
    assert "onnx: " in told
    assert "torch: " in told
    frame = pd.read_parquet("out.parquet")
    assert list(frame.columns) == ["session", "lat", "lon", "sigma"]
    assert len(frame) == 64
    heimdall("predict", "--model", uri, "--input", data, "--output", "out.geojson", "--runtime", "torch", "--quiet")
    point = json.loads(Path("out.geojson").read_text())["features"][0]["geometry"]["coordinates"]
    assert point == pytest.approx([frame["lon"][0], frame["lat"][0]], rel=1e-4)

    heimdall("models", "export", uri, "--output", "taken")
    heimdall("predict", "--model", "taken", "--input", data, "--output", "out.csv")
    assert pd.read_csv("out.csv")["lat"].to_numpy() == pytest.approx(frame["lat"].to_numpy(), rel=1e-5)


def test_wrong_use_is_one_sentence_with_the_mend(heimdall: Any, trained_run: Any, tmp_path: Path) -> None:
    assert "No model is registered yet" in heimdall("models", "list")
    heimdall("models", "promote", "heimdall-nothing", "1", code=65)
    assert "There are: none yet" in heimdall.err
    heimdall("models", "register", "--run", "best", code=65)
    assert "heimdall runs list shows the runs" in heimdall.err
    heimdall("models", "register", "--run", "nobody", code=2)
    heimdall("predict", "--model", "nowhere", "--input", "x", "--output", "x.csv", code=65)
    heimdall("predict", "--model", str(tmp_path), "--input", "x", "--output", "x.csv", code=2)
    assert "Add --task NAME" in heimdall.err
    heimdall("predict", "--model", "nowhere", "--input", "x", "--output", "x.xlsx", code=2)
    assert ".parquet, .csv, .geojson" in heimdall.err
    run, _ = trained_run(1.0, 0.4), trained_run(1.0, 0.4)
    heimdall("runs", "show", "skill 1.0", code=2)
    assert "2 runs are called 'skill 1.0'" in heimdall.err
    heimdall("runs", "show", "nobody", code=2)
    assert "heimdall runs list" in heimdall.err
    heimdall("predict", "--model", "models:/heimdall-beacon@nobody", "--input", "x", "--output", "x.csv", code=65)
    assert "heimdall models list" in heimdall.err
    heimdall("runs", "compare", run, "--metric", "nothing", "--picture", "p.png", code=65)
    assert "They have: val/loss" in heimdall.err


def test_a_bare_checkpoint_predicts_with_torch(heimdall: Any, beacon: Any) -> None:
    trained = beacon()
    words = (
        "predict",
        "--model",
        trained.checkpoint,
        "--task",
        "beacon",
        "--input",
        trained.folder,
        "--output",
        "o.csv",
    )
    heimdall(*map(str, words), code=2)
    assert "--runtime torch" in heimdall.err
    heimdall(*map(str, words), "--runtime", "torch")
    assert len(pd.read_csv("o.csv")) == 64
