"""Training speed and memory beside a plain implementation of the reference network, in one run.

The reference is built from its published layers: a shared encoder of conv3-ReLU-conv3-ReLU-attention-pool blocks with
64, 128, 256 channels (one block more at N = 128), two decoders up to N/2 placed in the middle of the window, and a
border branch. Both train with the same forward model, loss, optimizer and batch. Prints a table; asserts nothing about
time. At N = 128 the published network has 4.73 million weights and this one 2.37: the row flatters the reference.
"""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.config import SimulationOptions
from heimdall.tasks.ptychography.module import Groups, PtychographyModule
from heimdall.tasks.ptychography.network import dark_margin
from heimdall.tasks.ptychography.simulate import simulate

BATCH, STEPS = 16, 5


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
        channels = [64, 128, 256] if size == 64 else [32, 64, 128, 256]
        blocks: list[nn.Module] = []
        for inside, outside in zip([1, *channels], channels, strict=False):
            blocks += [*pair(inside, outside), Attention(outside), nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(*blocks)
        up = [*reversed(channels)]
        self.amplitude, self.phase = Decoder(up), Decoder(up)

    def forward(self, measured: Tensor) -> Tensor:
        values = self.encoder(measured)
        amplitude = nn.functional.softplus(self.amplitude(values))
        return torch.polar(amplitude, torch.pi * torch.tanh(self.phase(values)))


def measure(kind: str, size: int, threads: int, found: Any) -> None:
    torch.set_num_threads(threads)
    scan = simulate(SimulationOptions.model_validate({"patterns": BATCH, "size": size}))
    probe = torch.from_numpy(scan.probe)
    module = PtychographyModule(
        size=size, modes=1, gridsize=1, canvas=size, margin=dark_margin(probe), learn_probe=False, photon_scale=10.0
    )
    module.set_probe(probe)
    network: nn.Module = module.network if kind == "heimdall" else Reference(size)
    measured = physics.to_corner(torch.from_numpy(scan.patterns * physics.amplitude_scale(scan.patterns)))[:, None]
    centred = torch.fft.fftshift(measured, dim=(-2, -1))
    counts = (module.photon_scale * measured).square()
    zeros = torch.zeros(BATCH, 1, 2)
    groups = Groups(measured, torch.lgamma(counts + 1).sum((-2, -1)), zeros.long(), zeros)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def step() -> None:
        if kind == "heimdall":
            predicted = module.predicted(groups)
        else:
            wave = physics.far_field(network(centred), module.probe)
            predicted = physics.intensity(wave)
        optimizer.zero_grad()
        module.loss(predicted, groups).backward()
        optimizer.step()

    step()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    parameters = sum(weights.numel() for weights in network.parameters())
    found.put((BATCH * STEPS / seconds, peak / 1024, parameters))


@pytest.mark.benchmark
@pytest.mark.timeout(900)
def test_training_speed_and_memory_beside_the_reference_network() -> None:
    context = multiprocessing.get_context("spawn")
    print("\n   N  network     patterns/s   step memory MiB   parameters")
    for size in (64, 128):
        speeds = {}
        for kind in ("reference", "heimdall"):
            found = context.Queue()
            process = context.Process(target=measure, args=(kind, size, 1, found))
            process.start()
            speed, memory, parameters = found.get(timeout=400)
            process.join()
            speeds[kind] = speed
            print(f"{size:4d}  {kind:10s}  {speed:10.1f}   {memory:15.0f}   {parameters:10d}")
        print(f"      ratio {speeds['heimdall'] / speeds['reference']:.1f}")
        assert all(speed > 0 for speed in speeds.values())
