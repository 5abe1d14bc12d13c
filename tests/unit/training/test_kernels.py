from __future__ import annotations

import gc
import platform
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from heimdall.training.config import RunConfig
from heimdall.training.kernels import calm_collector, fuse, lay_out

STEPS = """
import resource, sys, torch
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    from heimdall.training.kernels import keep_memory
    keep_memory()
def step():
    return sum((torch.full((2_000_000,), float(n)) * 2 for n in range(6))).mean()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def train(*, fused: bool) -> torch.Tensor:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.05)
    for number in range(30):
        if fused and number == 10:  # as after a resume: there is a state already
            for group in optimizer.param_groups:
                fuse(group, optimizer.state)
            assert optimizer.param_groups[0]["fused"]
        loss = (module(torch.randn(16, 6)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def test_the_fused_optimizer_takes_the_same_steps() -> None:
    torch.testing.assert_close(train(fused=True), train(fused=False), rtol=1e-4, atol=1e-6)


def test_complex_weights_are_left_to_the_plain_optimizer() -> None:
    group = {"params": [nn.Parameter(torch.zeros(2, dtype=torch.complex64))]}
    fuse(group, {})
    assert "fused" not in group


def pages_asked_for(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_a_step_frees_serves_the_next_one() -> None:
    assert pages_asked_for("keep") < pages_asked_for("as it is") / 2


class Complex(LightningModule):
    """A convolution, and a parameter whose four dimensions are others."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3)
        self.probe = nn.Parameter(torch.zeros(3, 8, 8, 2))


def test_only_weights_of_convolutions_are_laid_out_channels_last() -> None:
    module = Complex()
    lay_out(module, RunConfig(channels_last=True))
    assert module.convolution.weight.is_contiguous(memory_format=torch.channels_last)
    torch.view_as_complex(module.probe)


def test_only_what_is_made_in_training_is_looked_at_by_the_collector() -> None:
    with calm_collector():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0


def test_objects_that_somebody_else_froze_stay_frozen() -> None:
    gc.freeze()
    try:
        with calm_collector():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
