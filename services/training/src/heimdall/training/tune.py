"""Measure, on the machine at hand, which batch size trains fastest and how many worker processes keep up with it."""

from __future__ import annotations

import gc
import inspect
import itertools
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from heimdall.tasks.base import Task, TaskConfig
from heimdall.training import options
from heimdall.training.config import RunConfig
from heimdall.training.kernels import fuse, keep_memory, lay_out
from heimdall.training.quiet import quiet_libraries

LARGEST_BATCH = 4096
STEPS, SECONDS = 12, 4.0  # measured for each size: so many steps, or as long
WORTH_IT = 1.05  # a larger batch must be this much faster a sample, or the smaller one is suggested
KEEPS_UP = 1.1  # loading is this much faster than training: it never makes the step wait


@dataclass
class Tuning:
    """Samples a second: of the step for each batch size, of loading for each number of workers; what to choose."""

    steps: dict[int, float] = field(default_factory=dict)
    loading: dict[int, float] = field(default_factory=dict)
    too_large: int | None = None  # the batch for which memory did not suffice
    batch_size: int = 1
    num_workers: int = 0


def tune(task: Task[Any], flags: Mapping[str, Any], file: Path | None) -> Tuning:
    """Time forward, backward and optimizer on batches in memory, then loading alone.

    The rule: the smallest batch within 5 % of the best samples/s; then the fewest workers that load a tenth faster than
    the step trains, or else the fastest number.
    """
    run, config = options.read([RunConfig, task.config_model], flags, file=file)
    cache = options.settings().cache_dir
    cache.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    config = task.prepare(config, cache)
    found = Tuning()
    size = config.batch_size if "batch_size" in config.model_fields_set else 8
    while size <= LARGEST_BATCH:
        try:
            rate = step_rate(task, config.model_copy(update={"batch_size": size, "num_workers": 0}), run)
        except (torch.OutOfMemoryError, MemoryError):
            found.too_large = size
            break
        if rate is None:
            break  # the training set is smaller than that
        found.steps[size] = rate
        size *= 2
    best = max(found.steps.values(), default=0.0)
    found.batch_size = min((s for s, rate in found.steps.items() if rate * WORTH_IT >= best), default=config.batch_size)
    for workers in worker_counts():
        chosen = config.model_copy(update={"batch_size": found.batch_size, "num_workers": workers})
        found.loading[workers] = loading_rate(task, chosen)
    needed = KEEPS_UP * found.steps.get(found.batch_size, math.inf)
    fastest = max(found.loading, key=lambda workers: found.loading[workers])
    found.num_workers = next((w for w, rate in found.loading.items() if rate >= needed), fastest)
    return found


def worker_counts() -> list[int]:
    """0, 1, 2, 4, … up to one less than the cores we may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [0, *(2**power for power in range(5) if 2**power < cores)]


def device_of(run: RunConfig) -> torch.device:
    """What the run would be trained on."""
    wanted = run.accelerator
    if wanted == "cpu" or (wanted == "auto" and not torch.accelerator.is_available()):
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    return found if found is not None else torch.device("cpu")


def step_rate(task: Task[Any], config: TaskConfig, run: RunConfig) -> float | None:
    """Samples a second of the training step alone; None where the training set holds no more than one such batch."""
    data = task.datamodule(config)
    loader = data.train_dataloader()
    if len(loader) < 2:  # a last batch alone may be smaller
        return None
    device = device_of(run)
    batch = to_device(next(iter(loader)), device)
    times: list[float] = []
    with stepping(task.module(config, data), device, run) as step:
        step(batch)
        deadline = time.perf_counter() + SECONDS
        while len(times) < STEPS and time.perf_counter() < deadline:
            start = time.perf_counter()
            step(batch)
            times.append(time.perf_counter() - start)
    gc.collect()
    return config.batch_size / statistics.median(times)


class StandingTrainer(Trainer):
    """For modules that ask their trainer something while nothing is trained: it stands at the first step."""

    @property
    def estimated_stepping_batches(self) -> int:
        """As many steps as a schedule needs to be made."""
        return 1000


@contextmanager
def stepping(module: Any, device: torch.device, run: RunConfig) -> Iterator[Any]:
    """``step(batch)`` trains ``module`` on one batch and returns its loss when the device is done with it.

    Where ``run`` accumulates gradients, weights change with every so-many-eth batch.
    """
    keep_memory()
    module.to(device).train()
    lay_out(module, run)
    module.log = lambda *_, **__: None
    module.trainer = StandingTrainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    made = module.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made[0][0] if isinstance(made, tuple) else made
    module.optimizers = lambda **_: optimizer
    for group in optimizer.param_groups if run.fused_optimizer else ():
        fuse(group, optimizer.state)
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(run.precision)
    arguments = (0,) if len(inspect.signature(module.training_step).parameters) > 1 else ()

    several, numbers = run.accumulate_grad_batches, itertools.count()

    def step(batch: Any) -> torch.Tensor:
        number = next(numbers)
        if number % several == 0:
            optimizer.zero_grad()
        with torch.autocast(device.type, half, enabled=half is not None):
            loss = module.training_step(batch, *arguments)
        (loss / several).backward()
        if (number + 1) % several == 0:
            optimizer.step()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        detached: torch.Tensor = loss.detach()
        return detached

    yield step


def loading_rate(task: Task[Any], config: TaskConfig) -> float:
    """Samples a second of loading alone, starting the workers left out."""
    batches = iter(task.datamodule(config).train_dataloader())
    next(batches, None)
    start, count = time.perf_counter(), 0
    for _ in batches:
        count += 1
        if time.perf_counter() - start > SECONDS / 2:
            break
    return count * config.batch_size / (time.perf_counter() - start) if count else math.inf


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with its tensors on ``device``."""
    from lightning.fabric.utilities import move_data_to_device

    return move_data_to_device(batch, device)


def print_tuning(console: Console, task: str, found: Tuning) -> None:
    """What was measured, and the flags to train with."""
    table = Table(title=f"Samples a second of {task} here", title_justify="left")
    for name in ("", "training step", "loading"):
        table.add_column(name, justify="right")
    for size, rate in found.steps.items():
        table.add_row(f"batch of {size}", f"{rate:,.0f}", "")
    for workers, rate in found.loading.items():
        table.add_row(f"{workers} workers", "", f"{rate:,.0f}")
    console.print(table)
    if found.too_large:
        console.print(f"A batch of {found.too_large} does not fit into memory.", highlight=False)
    console.print(f"Train with: --batch-size {found.batch_size} --num-workers {found.num_workers}", highlight=False)
    console.print(
        "A larger batch takes fewer steps an epoch: raise --learning-rate or --epochs with it.",
        highlight=False,
    )
