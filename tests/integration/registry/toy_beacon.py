"""A task small enough to train in a second: where is a beacon, from a handful of powers? Installed for tests only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from heimdall.errors import DataError
from heimdall.tasks.base import Arrays, Evaluation, FitResult, Predict, Report, Task, TaskConfig

RECEIVERS, BANDS, FRAMES = 3, 4, 5


def make_data(folder: Path, count: int = 64, seed: int = 0) -> Path:
    """Write ``count`` recordings whose powers say where the beacon is, with a little noise."""
    generator = np.random.default_rng(seed)
    truth = generator.uniform([44.5, 7.5], [45.5, 9.0], size=(count, 2)).astype(np.float32)
    mixing = np.random.default_rng(7).normal(size=(2, RECEIVERS)).astype(np.float32)
    powers = (truth - np.float32([45.0, 8.25])) @ mixing
    features = np.repeat(powers[:, :, None], BANDS * FRAMES, axis=2).reshape(count, RECEIVERS, BANDS, FRAMES)
    features = features + generator.normal(0, 0.05, size=features.shape)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "beacon.npz", features=features.astype(np.float32), truth=truth)
    return folder


class BeaconConfig(TaskConfig):
    data_dir: str = "data"


class BeaconData(LightningDataModule):
    def __init__(self, folder: str) -> None:
        super().__init__()
        with np.load(Path(folder) / "beacon.npz", allow_pickle=False) as file:
            self.features, self.truth = file["features"], file["truth"]

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.from_numpy(self.features), torch.from_numpy(self.truth)), batch_size=16)


class BeaconModule(LightningModule):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(RECEIVERS, width)
        self.register_buffer("centre", torch.tensor([45.0, 8.25]))
        self.register_buffer("sigma", torch.tensor(0.1))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        position = self.layer(features.mean(dim=(2, 3))) + self.centre
        return position[:, 0], position[:, 1], self.sigma.expand(features.shape[0])


def fit(module: BeaconModule, data: BeaconData) -> BeaconModule:
    """Least squares in closed form; what is tested here is not training."""
    powers = data.features.mean(axis=(2, 3))
    design = np.concatenate([powers, np.ones((len(powers), 1), np.float32)], axis=1)
    solution, *_ = np.linalg.lstsq(design, data.truth - module.centre.numpy(), rcond=None)
    with torch.no_grad():
        module.layer.weight.copy_(torch.from_numpy(solution[:-1].T.copy()))
        module.layer.bias.copy_(torch.from_numpy(solution[-1].copy()))
    return module


class BeaconTask(Task[BeaconConfig]):
    name = "beacon"
    config_model = BeaconConfig

    def prepare(self, config: BeaconConfig, cache: Path) -> BeaconConfig:
        if not (Path(config.data_dir) / "beacon.npz").is_file():
            raise DataError(f"There is no beacon.npz in {config.data_dir}.")
        return config

    def datamodule(self, config: BeaconConfig) -> BeaconData:
        return BeaconData(config.data_dir)

    def module(self, config: BeaconConfig, data: LightningDataModule) -> BeaconModule:
        torch.manual_seed(config.seed)
        return BeaconModule()

    def load(self, checkpoint: Path) -> BeaconModule:
        return BeaconModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)

    def report(self, result: FitResult, folder: Path) -> Report:
        raise NotImplementedError

    def inference_module(self, module: LightningModule) -> nn.Module:
        return module

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("features",)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("lat", "lon", "sigma")

    def example_input(self, data: LightningDataModule, count: int = 4) -> Arrays:
        return {"features": data.features[:count]}

    def evaluate(self, predict: Predict, source: str, cache: Path, batch_size: int = 64) -> Evaluation:
        file = Path(source) / "beacon.npz"
        if not file.is_file():
            raise DataError(f"There is no beacon.npz in {source}.")
        data = BeaconData(source)
        parts = [
            predict({"features": data.features[start : start + batch_size]})
            for start in range(0, len(data.features), batch_size)
        ]
        lat, lon, sigma = (np.concatenate([part[name] for part in parts]) for name in self.output_names)
        error = np.hypot(lat - data.truth[:, 0], lon - data.truth[:, 1])
        return Evaluation(
            metrics={
                "error/median_deg": float(np.median(error)),
                "calibration/inside_95": float(np.mean(error < 2.45 * sigma)),
            },
            digest=hashlib.sha256(file.read_bytes()).hexdigest(),
            count=len(error),
        )

    def predict(self, predict: Predict, source: str, cache: Path, batch_size: int = 64) -> Any:
        import pandas as pd

        data = BeaconData(source)
        parts = [
            predict({"features": data.features[start : start + batch_size]})
            for start in range(0, len(data.features), batch_size)
        ]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in self.output_names}
        return pd.DataFrame({"session": [f"s{i:04d}" for i in range(len(data.features))], **columns})
