from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from heimdall.tasks.localization.config import LocalizationConfig
from heimdall.tasks.localization.datamodule import LocalizationData
from heimdall.tasks.localization.module import LocalizationModule
from heimdall.tasks.localization.scene import ITALY, Scene
from heimdall.tasks.localization.simulator import simulate
from heimdall.tasks.localization.task import LocalizationTask

SESSIONS = 40


@pytest.fixture(scope="session")
def scene() -> Scene:
    """Four receivers: enough to solve, little to compute."""
    return Scene(seed=3, receivers=ITALY[:2] + ITALY[4:6])


@pytest.fixture(scope="session")
def recordings(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of simulated sessions. Do not change it: copy it (:func:`own_recordings`)."""
    return simulate(scene, tmp_path_factory.mktemp("data") / "set", SESSIONS)


@pytest.fixture
def own_recordings(recordings: Path, tmp_path: Path) -> Path:
    """A few sessions to be ill-treated."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in (
        "scene.json",
        *(f"session-{index:05d}.sigmf-{kind}" for index in range(12) for kind in ("meta", "data")),
    ):
        shutil.copy(recordings / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def config(recordings: Path, cache: Path) -> LocalizationConfig:
    """A prepared config of the compact network."""
    config = LocalizationConfig(backbone="COMPACT", data=str(recordings), epochs=2, batch_size=8, dropout=0.0)
    return LocalizationTask().prepare(config, cache)


@pytest.fixture(scope="session")
def data(config: LocalizationConfig) -> LocalizationData:
    made = LocalizationTask().datamodule(config)
    assert isinstance(made, LocalizationData)
    return made


@pytest.fixture
def module(config: LocalizationConfig, data: LocalizationData) -> LocalizationModule:
    made = LocalizationTask().module(config, data)
    assert isinstance(made, LocalizationModule)
    return made
