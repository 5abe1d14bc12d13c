"""What a step costs that computes next to nothing: bare, in Lightning, in ours; and a full garbage collection."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench import Table, median_ratios
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from heimdall.training.kernels import FusedOptimizers, fuse
from heimdall.training.loggers import History
from heimdall.training.overhead import spared_overhead
from heimdall.training.steps import step_directly
from trainers import silent_trainer

EPOCH = 100  # steps


class Nothing(LightningModule):
    """One weight, three figures a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Tensor) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        self.log("train/loss", loss.detach(), on_step=True, on_epoch=False, prog_bar=True)
        self.log("train/epoch_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        self.log("train/mae", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def bare(batches: list[Tensor], epochs: int) -> float:
    """Milliseconds a step of a plain loop."""
    module = Nothing()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for group in optimizer.param_groups:
        fuse(group, optimizer.state)
    began = time.perf_counter()
    for batch in batches * epochs:
        optimizer.zero_grad()
        module.training_step(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return 1e3 * (time.perf_counter() - began) / len(batches * epochs)


def lightning(batches: list[Tensor], epochs: int, *, ours: bool) -> float:
    """Milliseconds a step of a trainer that keeps all figures in memory."""
    trainer = silent_trainer(max_epochs=epochs, logger=History(), log_every_n_steps=1, callbacks=[FusedOptimizers()])
    if ours:
        step_directly(trainer)
    with spared_overhead() if ours else contextlib.nullcontext():
        began = time.perf_counter()
        trainer.fit(Nothing(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        return 1e3 * (time.perf_counter() - began) / len(batches * epochs)


@pytest.mark.benchmark
@pytest.mark.filterwarnings("ignore")
def test_what_a_step_costs_by_itself(bench_table: Callable[..., Table], full_bench: bool) -> None:
    import mlflow  # noqa: F401 - what a training process has loaded

    gc.collect()
    began = time.perf_counter()
    gc.collect()
    collection = time.perf_counter() - began
    batches, epochs = [torch.ones(4, 1)] * EPOCH, 10 if full_bench else 1
    ways: dict[str, Callable[[], float]] = {
        "bare loop": lambda: bare(batches, epochs),
        "heimdall's steps": lambda: lightning(batches, epochs, ours=True),
        "Lightning's steps": lambda: lightning(batches, epochs, ours=False),
    }
    found = median_ratios(ways, base="bare loop", rounds=3 if full_bench else 1)
    table = bench_table(
        "A step that computes nothing",
        ["loop", "ms a step", "beyond the bare loop, ms"],
        "Three figures logged at every step and kept in memory, AdamW, a schedule; a trainer's start is in its time. "
        f"A full garbage collection of such a process takes {1e3 * collection:.0f} ms.",
    )
    for way, (milliseconds, _) in found.items():
        table.row(way, milliseconds, milliseconds - found["bare loop"][0])
        assert milliseconds > 0
