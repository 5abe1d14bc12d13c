"""Progress for whoever watches: a live line on a terminal, a line an epoch in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch.optim import Optimizer

REFRESH_SECONDS = 1.0  # drawing takes milliseconds of the training thread
LOG_SECONDS = 10.0
LOG_WIDTH = 90
AROUND_FIGURES = 42  # epoch, bar and remaining time


class LearningRates(LearningRateMonitor):
    """The learning rate of each group of weights, under Lightning's names, which it makes anew at every step."""

    def __init__(self) -> None:
        super().__init__()
        self._groups: list[tuple[str, Optimizer, int]] = []

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Find the names."""
        del args, kwargs
        configs = trainer.lr_scheduler_configs
        names, seen, kinds = self._find_names_from_schedulers(configs)
        others, without = self._find_names_from_optimizers(trainer.optimizers, seen, kinds)
        optimizers = [config.scheduler.optimizer for config in configs] + without
        self._groups = [
            (name, optimizer, number)
            for found, optimizer in zip(names + others, optimizers, strict=True)
            for number, name in enumerate(found)
        ]

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Log them; the points tell their epoch as all others do."""
        del args, kwargs
        if not self._groups or not trainer._logger_connector.should_update_logs:
            return
        rates = {name: float(optimizer.param_groups[number]["lr"]) for name, optimizer, number in self._groups}
        for logger in trainer.loggers:
            logger.log_metrics(
                {**rates, "epoch": trainer.current_epoch}, step=trainer.fit_loop.epoch_loop._batches_that_stepped
            )

    def on_train_epoch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Every step has its point."""


class ProgressLine(Callback):
    """Where training stands. It redraws on a terminal; elsewhere a line an epoch, at most one in ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown = 0.0
        self._printed = float("-inf")
        self._figures = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, where a resumed run left off."""
        del pl_module
        if not self._console.is_terminal or not trainer.is_global_zero:
            return
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[figures]}", style="cyan"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, auto_refresh=False)
        self._bar.start()
        self._task = self._bar.add_task("", total=None, figures="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Redraw, a few times a second."""
        del pl_module, args, kwargs
        if self._bar is not None and time.monotonic() - self._shown > REFRESH_SECONDS:
            self._draw(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the new figures."""
        del pl_module
        self._figures = figures(trainer.callback_metrics, self._console.width - AROUND_FIGURES)
        if self._bar is not None:
            self._draw(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A line for the log."""
        del pl_module
        last = trainer.current_epoch + 1 == trainer.max_epochs
        due = last or time.monotonic() - self._printed > LOG_SECONDS
        if self._bar is None and trainer.is_global_zero and due and trainer.state.fn == "fit":
            self._printed = time.monotonic()
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._console.print(
                f"{epoch}  {figures(trainer.callback_metrics, LOG_WIDTH)}", highlight=False, soft_wrap=True
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the terminal as it was."""
        del trainer, pl_module
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        del trainer, pl_module, exception
        self._close()

    def _draw(self, trainer: Trainer) -> None:
        if self._bar is None or self._task is None:
            return
        self._shown = time.monotonic()
        epoch_batches = trainer.num_training_batches
        total = None if epoch_batches == float("inf") else int(epoch_batches) * (trainer.max_epochs or 1)
        self._bar.update(
            self._task,
            description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            completed=trainer.fit_loop.epoch_loop.batch_progress.total.ready,
            total=total,
            figures=self._figures,
        )
        self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def figures(metrics: Mapping[str, torch.Tensor], width: int) -> str:
    """The figures of an epoch that fit ``width`` characters: ``val/loss 0.48  train/loss 0.52  val/mae 0.31``."""
    kept = {
        n.removesuffix("_epoch"): v for n, v in metrics.items() if not n.endswith("_step") and not n.startswith("lr-")
    }
    line = ""
    for name in sorted(kept, key=lambda name: (not name.endswith("loss"), not name.startswith("val"), name)):
        longer = f"{line}  {name} {float(kept[name]):.4g}".strip()
        if len(longer) <= width:
            line = longer
    return line
