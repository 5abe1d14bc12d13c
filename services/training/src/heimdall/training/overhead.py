"""What Lightning spends on every step without need, spared; and the kernels that make a step fast.

Measured on lightning 2.6.6: logging three figures in a step costs 3 ms, nearly all of it in a walk through each stored
figure's attributes to move them to the device where they already are.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core import module as lightning_module
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from heimdall.training.config import RunConfig

_move = _ResultMetric.to


def _move_where_needed(self: _ResultMetric, *args: Any, **kwargs: Any) -> _ResultMetric:
    where = args[0] if args else kwargs.get("device")
    is_there = self.is_tensor and isinstance(where, torch.device) and self.value.device == where
    return self if is_there else _move(self, *args, **kwargs)


@cache
def _asked_before(function: Any, param: str, explicit: bool, min_args: int | None) -> bool:
    return is_param_in_hook_signature(function, param, explicit, min_args)


def _is_param(hook_fx: Any, param: str, explicit: bool = False, min_args: int | None = None) -> bool:
    # one signature a function, not one a call; a method is made anew each time it is looked up
    if min_args is None and hasattr(hook_fx, "__func__") and not hasattr(hook_fx, "__wrapped__"):
        return _asked_before(hook_fx.__func__, param, explicit, min_args)
    return is_param_in_hook_signature(hook_fx, param, explicit, min_args)


def spare_overhead() -> None:
    """Use the shortcuts from now on, in this process."""
    _ResultMetric.to = _move_where_needed  # type: ignore[method-assign]
    lightning_module.is_param_in_hook_signature = _is_param  # type: ignore[attr-defined]


def lay_out(module: LightningModule, run: RunConfig) -> None:
    """Order of memory and compilation, as ``run`` says."""
    if run.channels_last:
        module.to(memory_format=torch.channels_last)
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
