"""What a task is. A task says what is learnt; it never knows who logs, where runs are kept, or how training is driven.

A task of your own is a class derived from :class:`Task` that an installed package names in the entry-point group
``heimdall.tasks``; ``heimdall train NAME`` then finds it, with all its options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heimdall.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from torch import nn

Arrays = dict[str, npt.NDArray[Any]]
"""Named arrays, batch dimension first."""

Predict = Callable[[Arrays], Arrays]
"""A model as its users see it: named input arrays in, named output arrays out, batch dimension first."""

Publish = Callable[[Path, str], None]
"""``publish(path, artifact_folder)`` hands a file to whoever keeps artifacts; returns at once, never raises."""


class TaskConfig(BaseModel):
    """Options that every task has. Flag, environment name, file key and the reference table come from the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(100, ge=1, description="Passes over the training data.")
    batch_size: int = Field(32, ge=1, description="Samples per optimizer step and process.")
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Peak learning rate of the optimizer.")
    seed: int = Field(42, ge=0, description="The one seed that everything random is drawn from.")
    num_workers: int = Field(0, ge=0, description="Worker processes that load data; 0 loads in the training process.")


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """The logged metric that decides which checkpoint is best, and in which direction."""

    metric: str
    mode: Literal["min", "max"] = "min"


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What training hands to a task's report."""

    module: LightningModule  # weights of the best checkpoint
    data: LightningDataModule
    history: Mapping[str, Sequence[tuple[int, int, float]]]  # metric -> (step, epoch, value) in the order logged
    checkpoint: Path  # the best checkpoint


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run ends with: figures for the tracker, rows for the closing table, pictures and files as artifacts."""

    metrics: dict[str, float]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    files: Sequence[Path] = field(default_factory=tuple)
    notes: Sequence[str] = ()  # sentences printed below the table


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's figures on one data set, with the digest that says which data it was."""

    metrics: dict[str, float]
    digest: str  # sha256 over the data that was read
    count: int  # samples


ConfigT = TypeVar("ConfigT", bound=TaskConfig)
ModelT = TypeVar("ModelT", bound=BaseModel)


class Task(ABC, Generic[ConfigT]):
    """What is learnt: data, network, loss, report. One instance serves one process; it holds no state of a run."""

    name: ClassVar[str]
    config_model: ClassVar[type[TaskConfig]]
    monitor: ClassVar[Monitor] = Monitor(metric="val/loss")
    bundle_folder: ClassVar[str] = "bundle"  # under the run's output folder; "." writes the bundle beside its folders

    @property
    def model_name(self) -> str:
        """Name of the registered model, and of the MLflow experiment where none is set."""
        return f"heimdall-{self.name}"

    @abstractmethod
    def prepare(self, config: ConfigT, cache: Path) -> ConfigT:
        """Make the data ready: fetch or simulate what is missing, check what is there.

        Returns the config with its paths resolved.

        Raises :class:`~heimdall.errors.DataError` with the mend before anything that looks like a result is written.
        """

    @abstractmethod
    def datamodule(self, config: ConfigT) -> LightningDataModule:
        """Training, validation and test data. The order of samples follows from ``config.seed`` and the epoch alone."""

    @abstractmethod
    def module(self, config: ConfigT, data: LightningDataModule) -> LightningModule:
        """The network with its loss and optimizer, statistics of the training data set in buffers."""

    @abstractmethod
    def load(self, checkpoint: Path) -> LightningModule:
        """The module as a checkpoint holds it, needing nothing else. Loads plain types only, never a pickle."""

    @abstractmethod
    def report(self, result: FitResult, folder: Path) -> Report:
        """Evaluate on the test set, draw the pictures into ``folder``."""

    @abstractmethod
    def inference_module(self, module: LightningModule) -> nn.Module:
        """What is exported and served: raw features in, physical units out, standardisation inside.

        ``forward`` takes and returns tensors in the order of :attr:`input_names` and :attr:`output_names`.
        """

    @property
    @abstractmethod
    def input_names(self) -> tuple[str, ...]:
        """Names of the served model's inputs."""

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Names of the served model's outputs."""

    @abstractmethod
    def example_input(self, data: LightningDataModule, count: int = 4) -> Arrays:
        """``count`` real inputs from the test or validation data."""

    @abstractmethod
    def evaluate(self, predict: Predict, source: str, cache: Path, batch_size: int = 64) -> Evaluation:
        """A model's figures on the data set at ``source`` (folder, file or s3://…), whoever the model comes from."""

    @abstractmethod
    def predict(self, predict: Predict, source: str, cache: Path, batch_size: int = 64) -> pd.DataFrame:
        """One row a sample of the data set at ``source``; truth is not needed."""

    def simulate(self, folder: Path, options: Mapping[str, Any]) -> Path:
        """Write a data set drawn from one seed into ``folder`` and return where it lies."""
        raise UsageError(
            f"The task {self.name!r} has no simulator; {folder} was not written.", mend=f"Given: {options}."
        )

    def callbacks(self, config: ConfigT, folder: Path, publish: Publish) -> list[Callback]:
        """Further Lightning callbacks, for example one that draws a picture every few epochs and publishes it."""
        del config, folder, publish
        return []

    def bundle(self, module: LightningModule, config: ConfigT, folder: Path) -> Path:
        """Write the final model bundle (safetensors and JSON, no pickle) into ``folder`` and return its path."""
        raise NotImplementedError


def checked_options(model: type[ModelT], options: Mapping[str, Any]) -> ModelT:
    """``options`` of a simulation as ``model``. Raises :class:`~heimdall.errors.ConfigError` for a wrong one."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ConfigError(
            f"Simulation option {'.'.join(map(str, first['loc']))}: {first['msg']}.",
            mend=f"Options: {', '.join(model.model_fields)}.",
        ) from None


def task_names() -> list[str]:
    """Names of all installed tasks, sorted. Imports none of them."""
    return sorted(point.name for point in entry_points(group="heimdall.tasks"))


def find_task(name: str) -> Task[Any]:
    """The task that the entry point ``name`` names.

    Raises :class:`~heimdall.errors.UsageError` with the names there are.
    """
    points = {point.name: point for point in entry_points(group="heimdall.tasks")}
    if name not in points:
        raise UsageError(f"There is no task {name!r}.", mend=f"Choose one of: {', '.join(sorted(points))}.")
    task = points[name].load()()
    assert isinstance(task, Task)  # noqa: S101 - a contract between packages
    return task
