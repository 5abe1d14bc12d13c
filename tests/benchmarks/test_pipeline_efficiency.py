"""Steps a second of the whole pipeline beside a bare PyTorch loop, and beside Lightning with its MLFlowLogger.

The same module, the same number of batches. The bare loop has its batches in memory and does nothing but train.
Lightning alone trains with the same optimizer, and neither logs nor saves nor shows anything: what its loop costs by
itself. The others load from disk, log to MLflow after every step, save checkpoints and show a progress bar; validation
is left out of all times.
"""

from __future__ import annotations

import inspect
import io
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench import Table, median_ratios
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from rich.console import Console

from heimdall.settings import Settings
from heimdall.tasks.base import Task, find_task
from heimdall.training.config import RunConfig
from heimdall.training.kernels import FusedOptimizers, fuse, keep_memory
from heimdall.training.pipeline import TrainingPipeline
from trainers import silent_trainer

WARM_UP_STEPS = 3
LOOPS = {
    "bare": "bare loop, batches in memory",
    "heimdall": "heimdall",
    "alone": "Lightning alone, nothing logged or saved",
    "lightning": "Lightning and MLFlowLogger",
}
WORKLOADS: Mapping[str, tuple[dict[str, Any], dict[str, Any], int]] = {  # full, short; how often full
    "localization": (
        {"backbone": "CONVNEXT_TINY", "batch_size": 16, "epochs": 2, "sample_sessions": 240},
        {"backbone": "CONVNEXT_TINY", "batch_size": 4, "epochs": 1, "sample_sessions": 30},
        2,
    ),
    "localization, the compact network": (
        {"backbone": "COMPACT", "batch_size": 64, "epochs": 30, "sample_sessions": 1500},
        {"backbone": "COMPACT", "batch_size": 16, "epochs": 2, "sample_sessions": 120},
        3,
    ),
    "ptychography": (
        {"batch_size": 16, "epochs": 2, "simulate_patterns": 256, "preview_every": 0},
        {"batch_size": 4, "epochs": 2, "simulate_patterns": 64, "preview_every": 0, "width": 8},
        2,
    ),
}


class Clock:
    """Seconds on the wall, and seconds that the training thread worked, from after the first few steps on."""

    def __init__(self) -> None:
        self.steps = 0
        self._now = self._start = self._left_out = (0.0, 0.0)

    @staticmethod
    def read() -> tuple[float, float]:
        return time.perf_counter(), time.thread_time()

    def step(self) -> None:
        """A step is done."""
        self.steps += 1
        wall, thread = self.read()
        self._now = wall - self._left_out[0], thread - self._left_out[1]
        if self.steps == WARM_UP_STEPS:
            self._start = self._now

    def without(self, work: Callable[[], Any]) -> Any:
        """Do ``work`` while the clock stands."""
        before = self.read()
        done = work()
        after = self.read()
        self._left_out = tuple(x + n - b for x, n, b in zip(self._left_out, after, before, strict=True))  # type: ignore[assignment]
        return done

    @property
    def wall(self) -> float:
        """Seconds a step."""
        return (self._now[0] - self._start[0]) / (self.steps - WARM_UP_STEPS)

    @property
    def thread(self) -> float:
        """Seconds of the training thread a step."""
        return (self._now[1] - self._start[1]) / (self.steps - WARM_UP_STEPS)


class Stopwatch(Callback):
    """Times every step that a trainer makes; validation, all that it brings with it, is left out."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        loop: Any = trainer.fit_loop.epoch_loop.val_loop
        validate = loop.run
        loop.run = lambda: self.clock.without(validate)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.clock.step()


class Training:
    """One task made ready, and four ways to train it."""

    def __init__(self, name: str, options: dict[str, Any], folder: Path) -> None:
        self.task: Task[Any] = find_task(name.partition(",")[0])
        self.folder = folder
        self.config = self.task.prepare(self.task.config_model.model_validate(options), folder / "cache")
        data = self.task.datamodule(self.config)
        self.batches = list(data.train_dataloader())
        self.count = itertools.count()
        self.thread: dict[str, list[float]] = {}

    def _rate(self, loop: str, clock: Clock) -> float:
        self.thread.setdefault(loop, []).append(clock.thread)
        return 1 / clock.wall

    def _fresh(self) -> tuple[LightningModule, LightningDataModule]:
        data = self.task.datamodule(self.config)
        return self.task.module(self.config, data), data

    def bare(self) -> float:
        """Forward, backward, gradient clipping, fused optimizer, schedule; the batches are in memory."""
        module, _ = self._fresh()
        total = len(self.batches) * self.config.epochs
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        module._trainer = SimpleNamespace(estimated_stepping_batches=total, world_size=1)  # type: ignore[assignment]
        module.clip_gradients = clip  # type: ignore[method-assign]
        made: Any = module.configure_optimizers()
        optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        module.optimizers = lambda **_: optimizer  # type: ignore[method-assign]
        module.train()
        keep_memory()  # of the process, not of a loop: all have it
        for group in optimizer.param_groups:
            fuse(group, optimizer.state)
        takes = len(inspect.signature(module.training_step).parameters)
        clock = Clock()
        for number in range(total):
            optimizer.zero_grad()
            loss: Any = module.training_step(*(self.batches[number % len(self.batches)], number)[:takes])
            loss.backward()
            module.configure_gradient_clipping(optimizer)
            optimizer.step()
            schedule.step()
            clock.step()
        return self._rate("bare", clock)

    def pipeline(self) -> float:
        """``heimdall train`` up to the end of training."""
        watch = Stopwatch()
        home = self.folder / f"home-{next(self.count)}"
        run = RunConfig(
            output_dir=home / "out", log_every_n_steps=1, early_stop_patience=0, register_model=False, accelerator="cpu"
        )
        pipeline = TrainingPipeline(_timed(self.task, watch), self.config, run, Settings(heimdall_home=home))
        pipeline.console = Console(file=io.StringIO(), force_terminal=True, width=100)
        pipeline.run()
        return self._rate("heimdall", watch.clock)

    def alone(self) -> float:
        """Lightning's loop over a loader, and nothing else."""
        watch = Stopwatch()
        module, data = self._fresh()
        trainer = silent_trainer(
            max_epochs=self.config.epochs, limit_val_batches=0, callbacks=[watch, FusedOptimizers()]
        )
        trainer.fit(module, datamodule=data)
        return self._rate("alone", watch.clock)

    def lightning(self) -> float:
        """Lightning as its documentation has it, with MLFlowLogger on the same kind of store."""
        watch = Stopwatch()
        home = self.folder / f"lightning-{next(self.count)}"
        home.mkdir()
        module, data = self._fresh()
        trainer = Trainer(
            max_epochs=self.config.epochs,
            accelerator="cpu",
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            default_root_dir=home,
            logger=MLFlowLogger("bench", tracking_uri=f"sqlite:///{home}/mlflow.db", artifact_location=str(home / "a")),
            callbacks=[watch, ModelCheckpoint(home, save_last=True, save_top_k=3, monitor=self.task.monitor.metric)],
        )
        trainer.fit(module, datamodule=data)
        return self._rate("lightning", watch.clock)


def clip(optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, *_: Any, **__: Any) -> None:
    """What Lightning does where a module wants its gradient clipped."""
    if gradient_clip_val:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, gradient_clip_val)


def _timed(task: Task[Any], watch: Callback) -> Task[Any]:
    kind = type(task)

    class Timed(kind):  # type: ignore[misc, valid-type]
        def callbacks(self, *given: Any) -> list[Callback]:
            return [*super().callbacks(*given), watch]

    return Timed()


@pytest.fixture
def one_core_for_torch() -> Iterator[int]:
    """The bare loop has nobody beside it, the pipeline has its courier: each gets the same cores for its arithmetic."""
    before = torch.get_num_threads()
    chosen = max(1, len(os.sched_getaffinity(0)) - 1)
    torch.set_num_threads(chosen)
    yield chosen
    torch.set_num_threads(before)


@pytest.mark.benchmark
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(WORKLOADS))
def test_the_pipeline_trains_at_the_speed_of_a_bare_loop(
    name: str, tmp_path: Path, bench_table: Callable[..., Table], full_bench: bool, one_core_for_torch: int
) -> None:
    options, short, rounds = WORKLOADS[name]
    options = options if full_bench else short
    training = Training(name, options, tmp_path)
    ours = {"bare": training.bare, "heimdall": training.pipeline}
    others = {"bare": training.bare, "alone": training.alone, "lightning": training.lightning}
    found = median_ratios(ours, base="bare", rounds=rounds if full_bench else 1)
    found = {**median_ratios(others, base="bare", rounds=1), **found}
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    table = bench_table(
        f"Pipeline efficiency: {name}",
        ["training loop", "steps/s", "ratio", "thread, ms a step"],
        f"{said}; {len(training.batches)} steps an epoch, torch has {one_core_for_torch} core(s) in each loop. Metrics "
        "of every step go to SQLite; all loading, logging, checkpoints and the progress bar are in, validation is not. "
        "The last column is what the training thread itself worked: other work on the machine changes it least.",
    )
    for loop in LOOPS:
        rate, ratio = found[loop]
        table.row(LOOPS[loop], rate, ratio, 1e3 * statistics.median(training.thread[loop]))
        assert rate > 0
