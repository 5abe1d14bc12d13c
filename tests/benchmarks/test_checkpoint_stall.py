"""How long a save holds training up: ours beside a synchronous one and beside Lightning's own."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Table
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import nn

from heimdall.training.writer import CheckpointWriter, write

PARAMETERS = int(float(os.environ.get("HEIMDALL_BENCH_SIZE", "0")) * 1e6)


def checkpoint_of(parameters: int) -> dict[str, Any]:
    """A state as Lightning hands it over: weights and the two moments of AdamW, float32."""
    width = max(8, int((parameters / 24) ** 0.5))
    module = nn.Sequential(*[nn.Linear(width, width) for _ in range(24)])
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": 1}


@pytest.mark.benchmark
def test_a_save_stalls_training_for_a_tenth_of_a_synchronous_one(
    tmp_path: Path, bench_table: Callable[..., Table], full_bench: bool
) -> None:
    parameters = PARAMETERS or (200_000_000 if full_bench else 2_000_000)
    checkpoint = checkpoint_of(parameters)
    count = sum(value.numel() for value in checkpoint["state_dict"].values())
    writer, lightning = CheckpointWriter(), TorchCheckpointIO()
    writer.reserve(checkpoint)

    def background() -> float:
        writer.drain()
        start = time.perf_counter()
        writer.save_checkpoint(checkpoint, tmp_path / "background.ckpt")
        return time.perf_counter() - start

    def durable() -> float:
        start = time.perf_counter()
        write(checkpoint, tmp_path / "durable.ckpt")
        return time.perf_counter() - start

    def as_lightning_does() -> float:
        start = time.perf_counter()
        lightning.save_checkpoint(checkpoint, tmp_path / "lightning.ckpt")
        return time.perf_counter() - start

    rounds = 3
    stalls = {"in the background": [background() for _ in range(rounds)]}
    writer.teardown()
    stalls["synchronous, on the disk (fsync)"] = [durable() for _ in range(rounds)]
    stalls["synchronous, as Lightning does"] = [as_lightning_does() for _ in range(1 if full_bench else rounds)]
    table = bench_table(
        "Stall of a save",
        ["save", "first, s", "median, s", "ratio"],
        f"{count / 1e6:.0f} M parameters with the two moments of AdamW, {count * 12 / 1e9:.1f} GB in float32. "
        "The ratio is to the synchronous save that survives a power cut.",
    )
    base = statistics.median(stalls["synchronous, on the disk (fsync)"])
    for name, times in stalls.items():
        table.row(name, times[0], statistics.median(times), statistics.median(times) / base)
    loaded = torch.load(tmp_path / "background.ckpt", weights_only=True)
    name, value = next(iter(checkpoint["state_dict"].items()))
    assert torch.equal(loaded["state_dict"][name], value)
