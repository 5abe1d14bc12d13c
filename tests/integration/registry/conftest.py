"""A small task with its data, its trained checkpoints and the places to register it in."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from heimdall.cli import main
from heimdall.settings import Settings

DIST_INFO = "Metadata-Version: 2.1\nName: toy-beacon\nVersion: 1.0\n"


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sys.path or PYTHONPATH in which the package toy-beacon is installed, entry point and all."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(Path(__file__).with_name("toy_beacon.py"), site)
    info = site / "toy_beacon-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(DIST_INFO)
    (info / "entry_points.txt").write_text("[heimdall.tasks]\nbeacon = toy_beacon:BeaconTask\n")
    return site


@pytest.fixture(autouse=True)
def installed_toy(toy_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(toy_site))


@dataclass
class Trained:
    """What a training run leaves behind."""

    task: Any
    data: Any
    module: Any
    checkpoint: Path
    report: Any
    folder: Path  # the data set


@pytest.fixture(scope="session")
def beacon(toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """``beacon(skill=1.0)``: a trained toy; with less skill its positions shrink towards the centre."""
    sys.path.insert(0, str(toy_site))
    try:
        import toy_beacon
    finally:
        sys.path.remove(str(toy_site))
    made: dict[float, Trained] = {}

    def make(skill: float = 1.0) -> Trained:
        if skill not in made:
            made[skill] = _train(toy_beacon, tmp_path_factory.mktemp("beacon"), skill)
        return made[skill]

    return make


def _train(toy: Any, folder: Path, skill: float) -> Trained:
    import torch
    from lightning.pytorch import Trainer

    from heimdall.tasks.base import Report

    task, data = toy.BeaconTask(), toy.BeaconData(str(toy.make_data(folder / "train", seed=1)))
    module = toy.fit(task.module(toy.BeaconConfig(), data), data)
    with torch.no_grad():
        module.layer.weight.mul_(skill)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "best.ckpt")
    figure, axes = plt.subplots(figsize=(4, 3))
    axes.plot([0, 1], [0, skill])
    axes.set_title("toy")
    figure.savefig(folder / "curve.png")
    plt.close(figure)
    report = Report(
        metrics={"test/error_deg": 0.03 / skill},
        columns=("model", "error"),
        rows=[("beacon", f"{0.03 / skill:.3f}"), ("null", "0.4")],
        files=(folder / "curve.png",),
        notes=("Toy data.",),
    )
    return Trained(task, data, module, folder / "best.ckpt", report, toy.make_data(folder / "test", seed=2))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's empty SQLite database; making one takes MLflow some seconds of migrations."""
    from heimdall.registry.client import connect

    home = tmp_path_factory.mktemp("empty")
    settings = Settings(_env_file=None, heimdall_home=home, mlflow_tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    before = dict(os.environ)
    connect(settings).search_experiments()
    os.environ.clear()
    os.environ.update(before)  # else the settings made next would take this database for theirs
    return home / "mlflow.db"


@pytest.fixture
def local(tmp_path: Path, empty_database: Path) -> Settings:
    """Settings of a laptop: SQLite and a folder."""
    (tmp_path / "home").mkdir()
    shutil.copy(empty_database, tmp_path / "home")
    return Settings(_env_file=None, heimdall_home=tmp_path / "home", mlflow_experiment_name="toy")


@pytest.fixture(scope="module")
def own_server(make_mlflow_server: Callable[..., Any]) -> Any:
    """An MLflow server on PostgreSQL and S3 of this file's own: a registry that no other test writes to."""
    return make_mlflow_server()


@pytest.fixture
def served(own_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings for the MLflow server on PostgreSQL and S3."""
    for name, value in own_server.s3.environment().items():
        monkeypatch.setenv(name, value)
    return Settings(
        _env_file=None,
        heimdall_home=tmp_path / "home",
        mlflow_tracking_uri=own_server.url,
        mlflow_experiment_name=f"toy-{tmp_path.name}",
    )


@pytest.fixture
def make_run() -> Callable[[Settings], str]:
    """``make_run(settings)``: the id of a finished run that a training would have left."""

    def make(settings: Settings) -> str:
        from heimdall.registry.client import connect, experiment_id

        client = connect(settings)
        run = client.create_run(
            experiment_id(client, settings, settings.mlflow_experiment_name), tags={"heimdall.task": "beacon"}
        )
        client.log_metric(run.info.run_id, "test/error_deg", 0.03, step=12)
        client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    return make


GATES = """
min_samples = 10
max_latency_ms = 1000.0
[[metrics]]
metric = "error/median_deg"
limit = 0.2
allowed_regression = 0.05
[[calibration]]
metric = "calibration/inside_95"
at_least = 0.5
at_most = 1.0
"""


@pytest.fixture
def gates(tmp_path: Path) -> Path:
    path = tmp_path / "gates.toml"
    path.write_text(GATES)
    return path


@pytest.fixture
def put(beacon: Callable[..., Trained], make_run: Callable[[Settings], str]) -> Callable[..., str]:
    """``put(settings, skill)``: register a toy of that skill from a run of its own; returns the version."""

    def put_one(settings: Settings, skill: float = 1.0) -> str:
        from heimdall.registry.register import register

        trained = beacon(skill)
        result = register(
            trained.task,
            trained.data,
            trained.report,
            run_id=make_run(settings),
            checkpoint=trained.checkpoint,
            settings=settings,
            module=trained.module,
        )
        return result.version

    return put_one


class Heimdall:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        self.out, self.err = self.capsys.readouterr()
        assert end.value.code == code, (self.out, self.err)
        return self.out


@pytest.fixture
def heimdall(
    local: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Heimdall:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEIMDALL_HOME", str(local.heimdall_home))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", local.mlflow_experiment_name)
    return Heimdall(capsys)
