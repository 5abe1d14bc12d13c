"""Lightning's loggers: thin adapters to our tracker, a CSV file, TensorBoard; and the history that a report draws.

Whatever keeps the metrics, a metric has one point a step. A resumed run computes again what came after its checkpoint;
those points are there already and are not written a second time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from heimdall.training.csv_file import CsvFile

FOLDER = "lightning_logs"


class OncePerStep:
    """Lets each metric through once a step, in rising order of steps."""

    def __init__(self, last: Mapping[str, int] | None = None) -> None:
        self.last = dict(last or {})

    def fresh(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Those of ``metrics`` that have no point at ``step`` or later yet."""
        new = {key: value for key, value in metrics.items() if step > self.last.get(key, -1)}
        self.last.update(dict.fromkeys(new, step))
        return new


class MetricLogger(Logger):
    """A Lightning logger that needs to know only how to write the points of one step."""

    def __init__(self, last: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self._once = OncePerStep(last)

    @property
    def name(self) -> str:
        """Lightning wants a name."""
        return FOLDER

    @property
    def version(self) -> str | int | None:
        """Lightning wants a version."""
        return None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the points that are new."""
        step = self._once.last.get("epoch", 0) if step is None else step
        if new := self._once.fresh(metrics, step):
            self.write(new, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The pipeline logs the configuration, once, where it belongs."""

    @abstractmethod
    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Write points of one step; each has not been written before."""


class History(MetricLogger):
    """All points in memory, for the report; they travel in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, list[tuple[int, int, float]]] = {}
        self._tensors: dict[str, torch.Tensor] = {}  # as of the last save: only new points are converted
        self._epoch = 0

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Append (step, epoch, value) to each metric."""
        self._epoch = int(metrics.get("epoch", self._epoch))
        for key, value in metrics.items():
            if key != "epoch":
                self.points.setdefault(key, []).append((step, self._epoch, float(value)))

    @property
    def next_step(self) -> int:
        """The first step without a point."""
        return max((points[-1][0] for points in self.points.values() if points), default=-1) + 1

    def state(self) -> dict[str, torch.Tensor]:
        """The points, one tensor (points, 3) a metric."""
        for key, points in self.points.items():
            old = self._tensors.get(key, torch.empty(0, 3, dtype=torch.float64))
            if len(old) < len(points):
                self._tensors[key] = torch.cat([old, torch.tensor(points[len(old) :], dtype=torch.float64)])
        return dict(self._tensors)

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take what :meth:`state` gave."""
        self.points = {k: [(int(s), int(e), v) for s, e, v in points.tolist()] for k, points in state.items()}
        self._tensors = {}
        self._once.last = {key: points[-1][0] for key, points in self.points.items() if points}


class Tracks(Protocol):
    """What is needed of a tracker here."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record points of one step."""


class TrackerLogger(MetricLogger):
    """Hands every point to our tracker, which never makes training wait."""

    def __init__(self, tracker: Tracks, last: Mapping[str, int] | None = None) -> None:
        super().__init__(last)
        self._tracker = tracker

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """One append to the journal."""
        self._tracker.log_metrics(metrics, step)


class CsvLogger(MetricLogger):
    """``metrics.csv`` with a header, step and epoch rows; ``hparams.yaml`` beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = CsvFile(folder / "metrics.csv", ("epoch", "step"))
        last = {key: step for key, step in self._file.last_steps.items() if key not in {"epoch", "step"}}
        super().__init__(last)

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """One row."""
        self._file.append({**metrics, "step": step})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Each row tells its epoch, so an epoch alone makes no row."""
        rest = {key: value for key, value in metrics.items() if key != "epoch"}
        step = 0 if step is None else step
        if new := self._once.fresh(rest, step):
            self.write({"epoch": int(metrics.get("epoch", 0)), **new}, step)

    def finalize(self, status: str) -> None:
        """Close the file; a later row opens it again."""
        del status
        self._file.close()


class TensorBoardLogger(MetricLogger):
    """Event files; a resumed run hides what it is about to compute again."""

    def __init__(self, folder: Path, next_step: int | None = None) -> None:
        super().__init__()
        self.folder, self._next_step = folder, next_step
        self._writer: Any = None

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """One event a metric."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._next_step)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def save(self) -> None:
        """Bring everything to the disk: before a checkpoint says that it is there."""
        if self._writer is not None:
            self._writer.flush()

    def finalize(self, status: str) -> None:
        """Close the event file."""
        del status
        if self._writer is not None:
            self._writer.close()
            self._next_step, self._writer = None, None


def next_version(output: Path) -> int:
    """The number of a new ``lightning_logs/version_N``."""
    taken = [int(p.name.removeprefix("version_")) for p in (output / FOLDER).glob("version_*") if p.name[8:].isdigit()]
    return max(taken, default=-1) + 1


def write_hparams(folder: Path, values: Mapping[str, Any]) -> None:
    """``hparams.yaml``: the configuration of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hparams.yaml").write_text(
        yaml.safe_dump(dict(values), sort_keys=True, allow_unicode=True), encoding="utf-8"
    )
