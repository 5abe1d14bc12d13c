from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset

from heimdall.training import overhead
from heimdall.training.overhead import spared_overhead
from heimdall.training.steps import step_directly
from trainers import silent_trainer


class Points(Logger):
    """Keeps what is logged."""

    name, version = "points", 0

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.points.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """None are kept."""


class Watcher(Callback):
    """Notes which hook of it was called, and the figures there were."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, float]]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.log("callback/twice", 2.0 * trainer.global_step, on_step=True)
        self.seen.append(("batch", {name: float(value) for name, value in trainer.callback_metrics.items()}))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        self.seen.append(("epoch", {name: float(value) for name, value in trainer.callback_metrics.items()}))


class Module(LightningModule):
    """Logs in all the ways there are."""

    def __init__(self, *, changes_its_mind: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer = torch.nn.Linear(3, 1)
        self.changes_its_mind = changes_its_mind

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        on_epoch = self.changes_its_mind and number == 2
        self.log("step", loss, on_step=True, on_epoch=on_epoch, prog_bar=True)
        self.log("mean", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch[0]))
        self.log("both", loss, on_step=True, on_epoch=True)
        self.log("number", 0.5 * number, on_step=True, on_epoch=True, reduce_fx="max")
        self.log("whole", number, on_step=True, on_epoch=True, reduce_fx="sum")
        self.log("shaped", loss.detach()[None], on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], number: int) -> None:
        self.log("val/loss", (self.layer(batch[0]) - batch[1]).square().mean() + number)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def train(module: Module, *, directly: bool = False) -> tuple[Any, Any]:
    torch.manual_seed(5)
    data = TensorDataset(torch.randn(22, 3), torch.randn(22, 1))
    points, watcher = Points(), Watcher()
    trainer = silent_trainer(max_epochs=3, logger=points, callbacks=[watcher], log_every_n_steps=1)
    if directly:
        step_directly(trainer)
    trainer.fit(module, DataLoader(data, 4), DataLoader(data, 8))
    return points.points, watcher.seen


@pytest.mark.filterwarnings("ignore")
def test_every_figure_is_what_it_is_without_the_shortcuts() -> None:
    points, seen = train(Module())
    with spared_overhead():
        assert train(Module()) == (points, seen)
        assert train(Module(), directly=True) == (points, seen)
    assert LightningModule.log is overhead._log
    assert len([1 for _, figures in points if "both_step" in figures]) == 18
    assert {name for name, _ in seen} == {"batch", "epoch"}


@pytest.mark.filterwarnings("ignore")
def test_a_figure_logged_in_other_words_is_still_refused() -> None:
    with spared_overhead(), pytest.raises(MisconfigurationException, match="twice"):
        train(Module(changes_its_mind=True))


def test_a_logged_figure_is_still_moved_where_it_is_elsewhere() -> None:
    figure = _ResultMetric(_Metadata(fx="training_step", name="loss", on_epoch=True), is_tensor=True)
    with spared_overhead():
        assert figure.to(torch.device("cpu")) is figure
        assert figure.to(torch.device("meta")).value.device.type == "meta"
