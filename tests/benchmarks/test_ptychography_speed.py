"""Training speed and memory beside a plain implementation of the reference network, in one run.

The reference is built from its published layers: a shared encoder of conv3-ReLU-conv3-ReLU-attention-pool blocks with
64, 128, 256 channels (one block more, of 32, at N = 128), two decoders up to N/2 placed in the middle of the window,
and a border branch. It has the number of weights that was published: 2.3 million at N = 64, 4.7 million at N = 128.
Both train with the same forward model, loss, optimizer and batch.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench import Table
from torch import Tensor, nn

from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.config import SimulationOptions
from heimdall.tasks.ptychography.module import Groups, PtychographyModule
from heimdall.tasks.ptychography.network import dark_margin
from heimdall.tasks.ptychography.simulate import simulate

PUBLISHED = {64: 2.34e6, 128: 4.73e6}  # weights of the reference


class Attention(nn.Module):
    """Channel attention, then spatial attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.Conv2d(channels, channels // 8, 1), nn.ReLU(), nn.Conv2d(channels // 8, channels, 1)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, values: Tensor) -> Tensor:
        pooled = self.channel(values.mean((2, 3), keepdim=True)) + self.channel(values.amax((2, 3), keepdim=True))
        values = values * torch.sigmoid(pooled)
        maps = torch.cat([values.mean(1, keepdim=True), values.amax(1, keepdim=True)], dim=1)
        return values * torch.sigmoid(self.spatial(maps))


def pair(inside: int, outside: int) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(), nn.Conv2d(outside, outside, 3, padding=1), nn.ReLU()]


class Decoder(nn.Module):
    """Channels halve while the edge doubles, up to N/2; a border branch fills the rest of the window."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside in itertools.pairwise(channels):
            layers += [nn.Upsample(scale_factor=2), *pair(inside, outside)]
        self.body = nn.Sequential(*layers)
        self.inner = nn.Conv2d(channels[-1], 1, 3, padding=1)
        self.border = nn.Sequential(
            nn.Upsample(scale_factor=2), *pair(channels[-1], 16), nn.Conv2d(16, 1, 3, padding=1)
        )

    def forward(self, values: Tensor) -> Tensor:
        values = self.body(values)
        quarter = values.shape[-1] // 2
        inner = nn.functional.pad(self.inner(values), [quarter] * 4)
        mask = nn.functional.pad(torch.ones_like(values[:, :1]), [quarter] * 4)
        return inner + (1 - mask) * self.border(values)


class Reference(nn.Module):
    """Amplitude, non-negative, and phase, π tanh, from amplitudes (B, 1, N, N)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        channels, up = ([64, 128, 256], [256, 128, 64]) if size == 64 else ([32, 64, 128, 256], [256, 256, 128, 64])
        blocks: list[nn.Module] = []
        for inside, outside in zip([1, *channels], channels, strict=False):
            blocks += [*pair(inside, outside), Attention(outside), nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(*blocks)
        self.amplitude, self.phase = Decoder(up), Decoder(up)

    def forward(self, measured: Tensor) -> Tensor:
        values = self.encoder(measured)
        amplitude = nn.functional.softplus(self.amplitude(values))
        return torch.polar(amplitude, torch.pi * torch.tanh(self.phase(values)))


def measure(kind: str, size: int, device: str, batch: int, steps: int) -> tuple[float, float, float]:
    """Patterns a second, MiB that training adds to the peak, and weights; one thread on a CPU."""
    torch.set_num_threads(1)
    scan = simulate(SimulationOptions.model_validate({"patterns": 16, "size": size}))
    scan = scan.select(np.arange(batch) % len(scan))
    probe = torch.from_numpy(scan.probe)
    module = PtychographyModule(
        size=size, modes=1, gridsize=1, canvas=size, margin=dark_margin(probe), learn_probe=False, photon_scale=10.0
    )
    module.set_probe(probe)
    network = (module.network if kind == "heimdall" else Reference(size)).to(device)
    module.to(device)
    measured = physics.to_corner(torch.from_numpy(scan.patterns * physics.amplitude_scale(scan.patterns)))[:, None]
    measured = measured.to(device)
    centred = torch.fft.fftshift(measured, dim=(-2, -1))
    counts = (module.photon_scale * measured).square()
    zeros = torch.zeros(batch, 1, 2, device=device)
    groups = Groups(measured, torch.lgamma(counts + 1).sum((-2, -1)), zeros.long(), zeros)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = largest()

    def step() -> None:
        if kind == "heimdall":
            predicted = module.predicted(groups)
        else:
            predicted = physics.intensity(physics.far_field(network(centred), module.probe))
        optimizer.zero_grad()
        module.loss(predicted, groups).backward()
        optimizer.step()

    def finished() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    step()
    began = finished()
    for _ in range(steps):
        step()
    seconds = finished() - began
    peak = largest() - before
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return batch * steps / seconds, peak, float(sum(weights.numel() for weights in network.parameters()))


def largest() -> float:
    """MiB that this process held at most. ``ru_maxrss`` would begin with what the parent held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def in_a_process_of_its_own(*words: Any) -> tuple[float, float, float]:
    done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    speed, memory, weights = json.loads(done.stdout)
    return speed, memory, weights


@pytest.mark.benchmark
@pytest.mark.timeout(900)
def test_training_speed_and_memory_beside_the_reference_network(
    bench_table: Callable[..., Table], full_bench: bool
) -> None:
    table = bench_table(
        "Training of ptychography",
        ["device", "N", "network", "weights", "patterns/s", "ratio", "memory of a step, MiB"],
        "Batches of 16 patterns, each alone; the same forward model, loss and optimizer; medians over runs that take "
        "turns, each in a process of its own; one thread on the processor. The reference is a plain implementation of "
        "the published layers. Memory: what training adds to the peak of a process that holds the data.",
    )
    rounds, batch, steps = (2, 16, 2) if full_bench else (1, 4, 1)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for size in (64, 128) if full_bench else (64,):
            runs: dict[str, list[tuple[float, float, float]]] = {"reference": [], "heimdall": []}
            for _ in range(rounds):
                for kind, results in runs.items():
                    results.append(in_a_process_of_its_own(kind, size, device, batch, steps))
            medians = {
                kind: [statistics.median(each) for each in zip(*results, strict=True)] for kind, results in runs.items()
            }
            assert medians["reference"][2] == pytest.approx(PUBLISHED[size], rel=0.03)
            for kind, (speed, memory, weights) in medians.items():
                table.row(device, size, kind, f"{weights / 1e6:.2f} M", speed, speed / medians["reference"][0], memory)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))))
