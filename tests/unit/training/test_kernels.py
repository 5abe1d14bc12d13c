from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from heimdall.training.config import RunConfig
from heimdall.training.kernels import EarlyZeroGrad, fuse, lay_out

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


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.had_gradients: list[bool] = []

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.had_gradients.append(self.layer.weight.grad is not None)
        return (self.layer(batch) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(folder: Path, *, early: bool, accumulate: int) -> Line:
    torch.manual_seed(5)
    module, samples = Line(), torch.randn(9, 4, 3)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EarlyZeroGrad()] if early else [],
    )
    trainer.fit(module, DataLoader(list(samples), batch_size=None))
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_freed_before_the_forward_pass_and_nothing_else_changes(tmp_path: Path, accumulate: int) -> None:
    plain, early = (fit(tmp_path, early=early, accumulate=accumulate) for early in (False, True))
    assert torch.equal(plain.layer.weight, early.layer.weight)
    assert torch.equal(plain.layer.bias, early.layer.bias)
    assert any(plain.had_gradients[::accumulate])
    # nine batches an epoch: the last one of an odd number is a step of its own, so each epoch begins anew
    per_epoch = [early.had_gradients[:9], early.had_gradients[9:]]
    assert not any(any(epoch[::accumulate]) for epoch in per_epoch)
    assert accumulate == 1 or all(all(epoch[1::accumulate]) for epoch in per_epoch)
