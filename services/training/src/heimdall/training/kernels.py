"""What makes the step itself fast: order of memory, compilation, fused updates, memory that is kept."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from heimdall.training.config import RunConfig

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_KEPT = 32 * 2**20  # bytes; the most that glibc takes


def keep_memory() -> None:
    """Have the C library keep what a step frees for the next one.

    glibc gives it back to the system, which hands it out again page by page, all zeros: a fifth of a step on a CPU
    whose tensors have a few megabytes. Nothing happens where the C library is another one.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)


@contextlib.contextmanager
def calm_collector() -> Iterator[None]:
    """Have Python's garbage collector look only at what is made from here on.

    A full collection walks all that importing the libraries left behind: a third of a second in which no step is made
    (tests/benchmarks/test_step_cost.py). Cycles among those are collected afterwards.
    """
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:  # else somebody else had frozen some before, and wants them to stay so
            gc.unfreeze()


def lay_out(module: LightningModule, run: RunConfig) -> None:
    """Order of memory and compilation, as ``run`` says."""
    if run.channels_last:
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):  # no other tensor of four dimensions has channels
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.compile:
        for child in module.children():
            if any(True for _ in child.parameters()):
                child.compile()


class FusedOptimizers(Callback):
    """Adam, AdamW and SGD update all weights of a group in one kernel, where the device has it.

    Set on the groups rather than when the optimizer is made: the gradient scaler and gradient clipping then work as
    with any optimizer.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch to the kernels, after a checkpoint has been restored."""
        del pl_module
        for optimizer in trainer.optimizers:
            if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
                for group in optimizer.param_groups:
                    fuse(group, optimizer.state)


def fuse(group: dict[str, Any], state: Any) -> None:
    """Have one group of weights updated by the fused kernel."""
    devices = _get_fused_kernels_supported_devices()
    weights = group["params"]
    if group.get("differentiable") or any(
        weight.device.type not in devices or not weight.is_floating_point() for weight in weights
    ):
        return
    group["fused"], group["foreach"] = True, False
    for weight in weights:
        if isinstance(step := state.get(weight, {}).get("step"), torch.Tensor):
            state[weight]["step"] = step.to(weight.device, torch.float32)
