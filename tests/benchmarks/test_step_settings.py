"""The training step alone under each setting that is meant to make it faster, and what it does to the loss."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Table

from heimdall.tasks.base import find_task
from heimdall.training.config import RunConfig
from heimdall.training.tune import device_of, stepping, to_device

SETTINGS: dict[str, dict[str, Any]] = {
    "plain float32": {"fused_optimizer": False},
    "fused optimizer (default)": {},
    "and channels_last": {"channels_last": True},
    "and bf16-mixed": {"precision": "bf16-mixed"},
    "and both": {"precision": "bf16-mixed", "channels_last": True},
    "and compiled": {"compile": True},
    "and two half batches": {"accumulate_grad_batches": 2},
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # task, full, short
    "localization, CONVNEXT_TINY": (
        "localization",
        {"backbone": "CONVNEXT_TINY", "batch_size": 4, "sample_sessions": 40},
        {"backbone": "COMPACT", "batch_size": 4, "sample_sessions": 40},
    ),
    "localization, COMPACT": (
        "localization",
        {"backbone": "COMPACT", "batch_size": 64, "sample_sessions": 200},
        {"backbone": "COMPACT", "batch_size": 4, "sample_sessions": 40},
    ),
    "ptychography": (
        "ptychography",
        {"batch_size": 8, "simulate_patterns": 64},
        {"batch_size": 4, "simulate_patterns": 32, "width": 8},
    ),
}


@pytest.mark.benchmark
@pytest.mark.parametrize("case", list(CASES))
def test_what_each_setting_does_to_a_step(
    case: str, tmp_path: Path, bench_table: Callable[..., Table], full_bench: bool
) -> None:
    name, *both = CASES[case]
    options, steps = both[0 if full_bench else 1], 8 if full_bench else 2
    task = find_task(name)
    config = task.prepare(task.config_model.model_validate(options), tmp_path)
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    table = bench_table(
        f"The step: {case}",
        ["setting", "ms a step", "speed", "loss of the last step"],
        f"{said}; {torch.get_num_threads()} threads of the CPU.",
    )
    base = 0.0
    for setting, chosen in SETTINGS.items():
        if "compile" in chosen and not (full_bench and shutil.which("g++")):
            continue
        run = RunConfig(**chosen)
        parts = run.accumulate_grad_batches
        data = task.datamodule(config.model_copy(update={"batch_size": config.batch_size // parts}))
        batches = [to_device(batch, device_of(run)) for batch in islice(data.train_dataloader(), 2 * parts)]
        times, loss = [], 0.0
        with stepping(task.module(config, data), device_of(run), run) as step:
            torch.manual_seed(0)
            for number in range(steps + 1):
                begin = number * parts % len(batches)
                start = time.perf_counter()
                losses = [float(step(batch)) for batch in batches[begin : begin + parts]]
                times.append(time.perf_counter() - start)
                loss = statistics.mean(losses)
        median = statistics.median(times[1:])
        base = base or median
        table.row(setting, median * 1e3, base / median, loss)
        assert math.isfinite(loss)
