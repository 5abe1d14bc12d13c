"""A tiny but whole task: a noisy plane is fitted by a small network. For tests of what is around tasks.

The network has dropout and the data set draws noise for every sample it hands out, so that a resumed run equals an
uninterrupted one only if every random state and the order of samples are put back.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from heimdall.errors import DataError
from heimdall.tasks.base import Arrays, Evaluation, FitResult, Monitor, Predict, Report, Task, TaskConfig

SLOPE = np.array([1.5, -2.0, 0.5], dtype=np.float32)


class ToyConfig(TaskConfig):
    epochs: int = Field(3, ge=1, description="Passes over the training data.")
    batch_size: int = Field(16, ge=1, description="Samples a step.")
    data: str = Field("", description="Folder with plane.npz; simulated where empty.")
    samples: int = Field(128, ge=8, description="Samples to simulate.")
    backbone: Literal["SMALL", "LARGE"] = Field("SMALL", description="Width of the network.")
    step_seconds: float = Field(0.0, ge=0, description="Time a training step pretends to take, in seconds.")
    validation_seconds: float = Field(0.0, ge=0, description="Time a validation step pretends to take, in seconds.")
    noise: float = Field(0.1, ge=0, description="Noise that each reading of a training sample adds.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of units dropped in training.")
    fail_at_step: int = Field(-1, description="Step at which training raises.")
    patience_metric: bool = Field(False, description="Use a scheduler that looks at the validation loss.")


class Plane(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, x: np.ndarray, y: np.ndarray, noise: float) -> None:
        self.x, self.y, self.noise = torch.from_numpy(x), torch.from_numpy(y), noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + self.noise * torch.randn(3), self.y[index]


def simulate_plane(folder: Path, samples: int, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(samples, 3)).astype(np.float32)
    y = (x @ SLOPE + 0.05 * generator.normal(size=samples)).astype(np.float32)[:, None]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plane.npz"
    np.savez(path, x=x, y=y)
    return path


class ToyData(LightningDataModule):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        with np.load(Path(config.data) / "plane.npz") as stored:
            x, y = stored["x"], stored["y"]
        self.digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
        cut, end = int(0.7 * len(x)), int(0.85 * len(x))
        self.parts = {"train": (x[:cut], y[:cut]), "val": (x[cut:end], y[cut:end]), "test": (x[end:], y[end:])}

    def _loader(self, part: str, *, shuffle: bool = False) -> DataLoader[Any]:
        noise = self.config.noise if shuffle else 0.0
        return DataLoader(
            Plane(*self.parts[part], noise),
            batch_size=self.config.batch_size,
            shuffle=shuffle,
            num_workers=self.config.num_workers,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")


class ToyModule(LightningModule):
    mean: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters({"config": dict(config)})
        self.config = ToyConfig(**config)
        width = {"SMALL": 8, "LARGE": 32}[self.config.backbone]
        self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Dropout(self.config.dropout), nn.Linear(width, 1))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x - self.mean)
        return out

    def _loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        error = self(batch[0]) - batch[1]
        return error.square().mean(), error.abs().mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.config.step_seconds:
            time.sleep(self.config.step_seconds)
        if self.global_step == self.config.fail_at_step:
            raise RuntimeError("the toy was told to fail")
        loss, _ = self._loss(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if self.config.validation_seconds:
            time.sleep(self.config.validation_seconds)
        loss, mae = self._loss(batch)
        self.log_dict({"val/loss": loss, "val/mae": mae}, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        loss, mae = self._loss(batch)
        self.log_dict({"test/loss": loss, "test/mae": mae})

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)
        if self.config.patience_metric:
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}}
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class ToyTask(Task[ToyConfig]):
    name: ClassVar[str] = "toy"
    config_model: ClassVar[type[ToyConfig]] = ToyConfig
    monitor: ClassVar[Monitor] = Monitor(metric="val/loss")

    def prepare(self, config: ToyConfig, cache: Path) -> ToyConfig:
        if config.data:
            if not (Path(config.data) / "plane.npz").exists():
                raise DataError(f"There is no plane.npz in {config.data}.", mend="Leave --data out to simulate one.")
            return config
        folder = cache / "toy" / f"{config.samples}-{config.seed}"
        if not (folder / "plane.npz").exists():
            simulate_plane(folder, config.samples, config.seed)
        return config.model_copy(update={"data": str(folder)})

    def datamodule(self, config: ToyConfig) -> ToyData:
        return ToyData(config)

    def module(self, config: ToyConfig, data: LightningDataModule) -> ToyModule:
        assert isinstance(data, ToyData)
        module = ToyModule(config.model_dump(mode="json"))
        module.mean.copy_(torch.from_numpy(data.parts["train"][0].mean(axis=0)))
        return module

    def load(self, checkpoint: Path) -> ToyModule:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
        module = ToyModule(stored["hyper_parameters"]["config"])
        module.load_state_dict(stored["state_dict"])
        return module

    def report(self, result: FitResult, folder: Path) -> Report:
        assert isinstance(result.data, ToyData)
        x, y = result.data.parts["test"]
        result.module.eval()
        with torch.no_grad():
            found = result.module(torch.from_numpy(x)).numpy()
        mae, null = float(np.abs(found - y).mean()), float(np.abs(y - y.mean()).mean())
        folder.mkdir(parents=True, exist_ok=True)
        figure = folder / "history.json"
        figure.write_text(json.dumps({key: len(points) for key, points in result.history.items()}))
        return Report(
            metrics={"report/mae": mae, "report/null_mae": null},
            columns=("model", "mean error"),
            rows=(("network", f"{mae:.3f}"), ("mean of the training data", f"{null:.3f}")),
            files=(figure,),
        )

    def inference_module(self, module: LightningModule) -> nn.Module:
        return module.eval()

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("x",)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("y",)

    def example_input(self, data: LightningDataModule, count: int = 4) -> Arrays:
        assert isinstance(data, ToyData)
        return {"x": data.parts["test"][0][:count]}

    def _read(self, source: str) -> tuple[np.ndarray, np.ndarray]:
        with np.load(Path(source) / "plane.npz") as stored:
            return stored["x"], stored["y"]

    def evaluate(self, predict: Predict, source: str, cache: Path, batch_size: int = 64) -> Evaluation:
        x, y = self._read(source)
        found = np.concatenate([predict({"x": x[i : i + batch_size]})["y"] for i in range(0, len(x), batch_size)])
        digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
        return Evaluation(metrics={"mae": float(np.abs(found - y).mean())}, digest=digest, count=len(x))

    def predict(self, predict: Predict, source: str, cache: Path, batch_size: int = 64) -> pd.DataFrame:
        x, _ = self._read(source)
        return pd.DataFrame({"y": predict({"x": x})["y"][:, 0]})

    def simulate(self, folder: Path, options: Mapping[str, Any]) -> Path:
        return simulate_plane(folder, int(options.get("samples", 128)), int(options.get("seed", 42)))

    def bundle(self, module: LightningModule, config: ToyConfig, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(config.model_dump_json())
        return folder


def install(folder: Path) -> dict[str, str]:
    """Make the toy an installed package for child processes: ``PYTHONPATH`` with its entry point, as variables."""
    info = folder / "heimdall_toy-0.1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heimdall-toy\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[heimdall.tasks]\ntoy = toy_task:ToyTask\n")
    return {"PYTHONPATH": f"{folder}:{Path(__file__).parent}"}
