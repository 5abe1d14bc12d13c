"""The localization task: the Task contract, put together from this folder. Heavy imports wait until they are needed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from heimdall.errors import DataError
from heimdall.logs import get, progress
from heimdall.tasks.base import Arrays, Evaluation, FitResult, Predict, Report, Task, TaskConfig, checked_options
from heimdall.tasks.localization.config import LocalizationConfig, SimulationOptions

if TYPE_CHECKING:
    import pandas as pd
    from lightning.pytorch import LightningDataModule, LightningModule
    from torch import nn

    from heimdall.tasks.localization.dataset import Dataset


class LocalizationTask(Task[LocalizationConfig]):
    """Where a transmitter stands, and how sure we are, from recordings of at least three receivers."""

    name: ClassVar[str] = "localization"
    config_model: ClassVar[type[TaskConfig]] = LocalizationConfig
    simulation_model: ClassVar[type[SimulationOptions]] = SimulationOptions

    def prepare(self, config: LocalizationConfig, cache: Path) -> LocalizationConfig:
        """Simulate the sample set or fetch the data where they are missing; check them; make the features."""
        from filelock import FileLock

        from heimdall.tasks.localization.dataset import open_dataset

        cache = Path(config.cache).expanduser().absolute() if config.cache else cache.absolute()
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "localization.lock"):
            folder = _fetch(config.data, cache) if config.data else self._sample_set(config, cache)
            dataset = open_dataset(folder)
            _ = dataset.truths  # a session without truth is found now, not after an epoch
            started = time.monotonic()
            with progress(f"Reading {len(dataset.sessions)} sessions", len(dataset.sessions)) as tell:
                dataset.features(cache, tell)
        get(__name__).info(
            "data ready",
            sessions=len(dataset.sessions),
            receivers=len(dataset.receivers),
            seconds=round(time.monotonic() - started, 1),
        )
        return config.model_copy(update={"data": str(folder), "cache": str(cache)})

    def _sample_set(self, config: LocalizationConfig, cache: Path) -> Path:
        name = f"{config.sample_sessions}-seed{config.sample_seed}-{config.sample_frequency_mhz:g}MHz-v1"
        folder = cache / "sample-sets" / name
        if not folder.exists():
            options = {
                "sessions": config.sample_sessions,
                "seed": config.sample_seed,
                "frequency_mhz": config.sample_frequency_mhz,
            }
            self.simulate(folder, options)
        return folder

    def simulate(self, folder: Path, options: Mapping[str, Any]) -> Path:
        """Write a simulated data set; ``options`` as in :class:`SimulationOptions`."""
        from heimdall.tasks.localization.scene import Scene
        from heimdall.tasks.localization.simulator import simulate

        chosen = checked_options(SimulationOptions, options)
        of_the_set = {"sessions", "first_session", "frequency_mhz"}
        scene = Scene(frequency_hz=chosen.frequency_mhz * 1e6, **chosen.model_dump(exclude=of_the_set))
        started = time.monotonic()
        with progress(f"Simulating {chosen.sessions} sessions, once", chosen.sessions) as tell:
            simulate(scene, folder, chosen.sessions, first_session=chosen.first_session, progress=tell)
        get(__name__).info("simulated", seconds=round(time.monotonic() - started, 1))
        return folder

    def datamodule(self, config: LocalizationConfig) -> LightningDataModule:
        """Sessions of a prepared config, split by session."""
        from heimdall.tasks.localization.datamodule import LocalizationData

        return LocalizationData(config)

    def module(self, config: LocalizationConfig, data: LightningDataModule) -> LightningModule:
        """A new network, from published weights where the config says so."""
        import torch

        from heimdall.tasks.localization.backbones import ImageBackbone
        from heimdall.tasks.localization.datamodule import LocalizationData
        from heimdall.tasks.localization.module import LocalizationModule, hyperparameters

        assert isinstance(data, LocalizationData)  # noqa: S101 - made by this task
        torch.manual_seed(config.seed)
        module = LocalizationModule(hyperparameters(config, data))
        if config.pretrained and isinstance(module.network.backbone, ImageBackbone):
            module.network.backbone.load_published(config.pretrained_weights)
        module.fit_statistics(data)
        return module

    def load(self, checkpoint: Path) -> LightningModule:
        """The module of a checkpoint or of a model bundle."""
        from heimdall.tasks.localization.bundle import read_bundle
        from heimdall.tasks.localization.module import LocalizationModule

        if checkpoint.suffix == ".zip":
            return read_bundle(checkpoint)
        loaded: LocalizationModule = LocalizationModule.load_from_checkpoint(
            checkpoint, map_location="cpu", weights_only=True
        )
        return loaded.eval()

    def report(self, result: FitResult, folder: Path) -> Report:
        """Figures, closing table and pictures on the test sessions."""
        from heimdall.tasks.localization.report import make_report

        return make_report(result, folder)

    def inference_module(self, module: LightningModule) -> nn.Module:
        """(B, R, 128, 32) dB → latitude, longitude in degrees and σ east, σ north in metres, each (B,)."""
        from heimdall.tasks.localization.inference import Localizer
        from heimdall.tasks.localization.module import LocalizationModule

        assert isinstance(module, LocalizationModule)  # noqa: S101 - made by this task
        return Localizer(module.network, *module.options["center"]).eval()

    @property
    def input_names(self) -> tuple[str, ...]:
        """(B, R, 128, 32) float32 dB."""
        return ("features",)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Degrees, degrees, metres, metres; each (B,) float32."""
        return ("latitude", "longitude", "sigma_east_m", "sigma_north_m")

    def example_input(self, data: LightningDataModule, count: int = 4) -> Arrays:
        """Features of the first ``count`` test sessions."""
        from heimdall.tasks.localization.datamodule import LocalizationData

        assert isinstance(data, LocalizationData)  # noqa: S101 - made by this task
        return {"features": np.array(data.features[data.split.test[:count]])}

    def evaluate(self, predict: Predict, source: str, cache: Path, batch_size: int = 64) -> Evaluation:
        """Distance errors in metres and coverage on all sessions at ``source``, which must carry their truth.

        Of a model whose answers are not numbers the figures are NaN.
        """
        from heimdall.tasks.localization.geometry import LocalPlane, geodesic_distance
        from heimdall.tasks.localization.metrics import calibration_figures, distance_figures

        dataset, outputs = _run(predict, source, cache, batch_size)
        latitude, longitude = dataset.truths.T
        distance = geodesic_distance(outputs["latitude"], outputs["longitude"], latitude, longitude)
        plane = LocalPlane(float(latitude.mean()), float(longitude.mean()))
        residual = plane.to_plane(outputs["latitude"], outputs["longitude"]) - plane.to_plane(latitude, longitude)
        sigma = np.stack([outputs["sigma_east_m"], outputs["sigma_north_m"]], axis=1).astype(np.float64)
        figures = distance_figures(distance) | calibration_figures(residual * 1e3, sigma)
        return Evaluation(metrics=figures, digest=dataset.digest, count=len(dataset.sessions))

    def predict(self, predict: Predict, source: str, cache: Path, batch_size: int = 64) -> pd.DataFrame:
        """One row a session: session, latitude, longitude, sigma_east_m, sigma_north_m."""
        import pandas as pd

        dataset, outputs = _run(predict, source, cache, batch_size)
        broken = [name for name, values in outputs.items() if not np.isfinite(values).all()]
        if broken:
            raise DataError(
                f"The model gives {', '.join(broken)} that are not numbers on {source}.", mend="Train the model again."
            )
        return pd.DataFrame({"session": [session.name for session in dataset.sessions], **outputs})

    def bundle(self, module: LightningModule, config: LocalizationConfig, folder: Path) -> Path:
        """Write ``localization.zip`` into ``folder``."""
        from heimdall.tasks.localization.bundle import write_bundle
        from heimdall.tasks.localization.module import LocalizationModule

        assert isinstance(module, LocalizationModule)  # noqa: S101 - made by this task
        return write_bundle(module, config.model_dump(mode="json", exclude={"cache"}), folder / "localization.zip")


def _fetch(source: str, cache: Path) -> Path:
    from heimdall.tasks.localization.fetch import fetch_dataset

    return fetch_dataset(source, cache)


def _run(predict: Predict, source: str, cache: Path, batch_size: int) -> tuple[Dataset, Arrays]:
    from heimdall.tasks.localization.dataset import open_dataset

    dataset = open_dataset(_fetch(source, cache))
    features = dataset.features(cache)
    batches = [predict({"features": batch}) for batch in _batches(features, batch_size)]
    outputs = {name: np.concatenate([np.asarray(batch[name]).ravel() for batch in batches]) for name in batches[0]}
    return dataset, outputs


def _batches(features: np.ndarray[Any, np.dtype[np.float32]], size: int) -> Iterator[Any]:
    for start in range(0, len(features), size):
        yield np.array(features[start : start + size])
