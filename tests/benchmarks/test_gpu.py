"""What a GPU gets out of a training step, beside plain float32 Lightning and beside the card's own matrix products.

The full measurement needs a GPU. The short one runs the same code, small, on whatever there is.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Table
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from heimdall.tasks.base import Task, TaskConfig, find_task
from heimdall.training.config import RunConfig
from heimdall.training.kernels import FusedOptimizers, keep_memory, lay_out
from heimdall.training.overhead import spared_overhead
from heimdall.training.steps import step_directly
from heimdall.training.tune import device_of, stepping, to_device
from trainers import silent_trainer

WAYS: dict[str, dict[str, Any] | None] = {
    "plain Lightning, float32": None,
    "default": {},
    "channels_last": {"channels_last": True},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-mixed, channels_last": {"precision": "bf16-mixed", "channels_last": True},
    "bf16-mixed, channels_last, compiled": {"precision": "bf16-mixed", "channels_last": True, "compile": True},
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # task, full, short
    "localization, CONVNEXT_LARGE": (
        "localization",
        {"backbone": "CONVNEXT_LARGE", "batch_size": 64, "sample_sessions": 300},
        {"backbone": "COMPACT", "batch_size": 4, "sample_sessions": 40},
    ),
    "ptychography, N = 128": (
        "ptychography",
        {"batch_size": 32, "simulate_patterns": 256, "simulate_size": 128},
        {"batch_size": 4, "simulate_patterns": 32, "width": 8},
    ),
}
WARM_UP_STEPS = 5


class Steps(Callback):
    """Times the steps after the first few, when the device is done with them."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.count, self.began, self.ended = device, 0, 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.count += 1
        if self.count == WARM_UP_STEPS:
            self.began = finished(self.device)
        if self.count == trainer.max_steps:
            self.ended = finished(self.device)

    @property
    def seconds(self) -> float:
        """A step."""
        return (self.ended - self.began) / (self.count - WARM_UP_STEPS)


def finished(device: torch.device) -> float:
    """The time when all work that was given to ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large product of square matrices in ``dtype``: what the device can do at best."""
    size = 8192 if device.type == "cuda" else 256
    first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(12):
        began = finished(device)
        first @ second
        times.append(finished(device) - began)
    return float(2 * size**3 / statistics.median(times[2:]))


def operations(module: LightningModule, batch: Any, device: torch.device) -> float:
    """Those of the products and convolutions of a step, forward and backward; a Fourier transform is not counted."""
    with stepping(module, device, RunConfig()) as step, FlopCounterMode(display=False) as counted:
        step(batch)
    return float(counted.get_total_flops())


def train(
    task: Task[Any], config: TaskConfig, batches: list[Any], options: dict[str, Any] | None, steps: int
) -> tuple[float, float]:
    """Seconds a step, and the most memory in MiB that the device held (0 on a CPU)."""
    run = RunConfig(**(options or {}))
    device = device_of(run)
    module = task.module(config, task.datamodule(config))
    watch = Steps(device)
    callbacks: list[Callback] = [watch]
    if options is not None:
        keep_memory()
        lay_out(module, run)
        callbacks.append(FusedOptimizers())
    trainer = silent_trainer(
        max_steps=steps,
        accelerator=device.type,
        devices=1,
        precision=run.precision,
        limit_val_batches=0,
        callbacks=callbacks,
    )
    if options is not None:
        step_directly(trainer)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.nullcontext() if options is None else spared_overhead():
        trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return watch.seconds, torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0


@pytest.mark.benchmark
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(CASES))
def test_what_a_gpu_gets_out_of_a_step(
    case: str, tmp_path: Path, bench_table: Callable[..., Table], full_bench: bool
) -> None:
    device = device_of(RunConfig())
    if full_bench and device.type != "cuda":
        pytest.skip("no GPU here")
    name, full, short = CASES[case]
    task, options = find_task(name), full if full_bench else short
    steps = WARM_UP_STEPS + (40 if full_bench else 2)
    config = task.prepare(task.config_model.model_validate(options), tmp_path)
    loader = task.datamodule(config).train_dataloader()
    batches = [to_device(batch, device) for batch in islice(cycle(loader), steps)]
    ceilings = {dtype: product_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    needed = operations(task.module(config, task.datamodule(config)), batches[0], device)
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    table = bench_table(
        f"A step on the GPU: {case}",
        ["setting", "samples/s", "ratio", "TFLOP/s", "of the ceiling", "memory, MiB"],
        f"{said}; batches on the device. The ceiling is what a large matrix product reaches here: "
        f"{ceilings[torch.float32] / 1e12:.4g} TFLOP/s in float32, {ceilings[torch.bfloat16] / 1e12:.4g} in bfloat16. "
        "Products and convolutions are counted, forward and backward; Fourier transforms are not.",
    )
    base = 0.0
    for way, chosen in WAYS.items():
        if chosen and chosen.get("compile") and not full_bench:
            continue
        seconds, memory = train(task, config, batches, chosen, steps)
        base = base or seconds
        dtype = torch.bfloat16 if chosen and "precision" in chosen else torch.float32
        rate = needed / seconds
        table.row(way, config.batch_size / seconds, base / seconds, rate / 1e12, rate / ceilings[dtype], memory)
        assert rate > 0
