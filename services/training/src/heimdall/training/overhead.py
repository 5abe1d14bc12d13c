"""What Lightning spends on every step without need, spared.

Measured on lightning 2.6.6: a figure that is logged costs a fifth of a millisecond, nearly all of it in checks of
arguments that were the same at the step before; a millisecond where it also walks through each stored figure's
attributes to move them to the device where they already are. Hooks that a callback does not have are called all the
same, a few dozen a step. Every shortcut here leaves whatever is unusual to Lightning.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core import module as lightning_module
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

KNOWN = "2.6."

_move = _ResultMetric.to
_log = LightningModule.log
_call_hooks = call._call_callback_hooks
_call_hook_of_module = call._call_lightning_module_hook
_call_hook_of_strategy = call._call_strategy_hook


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


def _log_again(
    self: LightningModule, name: str, value: Any, *args: Any, batch_size: int | None = None, **how: Any
) -> None:
    """``module.log``; a number that was logged in the same words before goes to where Lightning put it then."""
    results = self._trainer._results if self._trainer is not None else None
    hook = self._current_fx_name
    if results is None or hook is None or args or results.dataloader_idx is not None:
        how = how if batch_size is None else {**how, "batch_size": batch_size}
        return _log(self, name, value, *args, **how)
    known: dict[Any, _ResultMetric] = results.__dict__.setdefault("logged_before", {})
    words, place = (hook, name, *how.items()), f"{hook}.{name}"
    connector = self.trainer._logger_connector
    figure = known.get(words)
    number: torch.Tensor | None = None
    if results.get(place) is figure and not connector.should_reset_tensors(hook) and figure is not None:
        number = _as_number(value, figure)
    if figure is not None and number is not None:
        figure.forward(number, results._extract_batch_size(figure, batch_size, figure.meta))
        figure.has_reset = False
        connector._current_fx = hook
        return None
    _log(self, name, value, batch_size=batch_size, **how)
    if (new := results.get(place)) is not None and new.is_tensor and not new.meta.enable_graph:
        known[words] = new
    return None


def _as_number(value: Any, figure: _ResultMetric) -> torch.Tensor | None:
    if type(value) is float:
        return torch.tensor(value, dtype=figure.value.dtype, device=figure.value.device)
    if type(value) is torch.Tensor and value.ndim == 0 and value.device == figure.value.device:
        return value.detach()
    return None


def _call_existing_hooks(
    trainer: Trainer, hook_name: str, *args: Any, monitoring_callbacks: bool | None = None, **kwargs: Any
) -> None:
    """Call a hook of all callbacks that have it."""
    if monitoring_callbacks is not None or not _is_plain(trainer):
        return _call_hooks(trainer, hook_name, *args, monitoring_callbacks=monitoring_callbacks, **kwargs)
    module = trainer.lightning_module
    does_nothing = getattr(Callback, hook_name)
    with _Within(module, hook_name):
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            hook = getattr(callback, hook_name)
            if getattr(hook, "__func__", hook) is not does_nothing:
                hook(trainer, module, *args, **kwargs)
    return None


def _call_module_hook(
    trainer: Trainer, hook_name: str, *args: Any, pl_module: LightningModule | None = None, **kwargs: Any
) -> Any:
    """Call a hook of the module."""
    if pl_module is not None or not _is_plain(trainer):
        return _call_hook_of_module(trainer, hook_name, *args, pl_module=pl_module, **kwargs)
    module = trainer.lightning_module
    hook = getattr(module, hook_name)
    with _Within(module, hook_name):
        return hook(*args, **kwargs) if callable(hook) else None


def _call_strategy_hook(trainer: Trainer, hook_name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a hook of the strategy."""
    if not _is_plain(trainer):
        return _call_hook_of_strategy(trainer, hook_name, *args, **kwargs)
    hook = getattr(trainer.strategy, hook_name)
    with _Within(trainer.lightning_module, hook_name):
        return hook(*args, **kwargs) if callable(hook) else None


def _is_plain(trainer: Trainer) -> bool:
    # no profiler wants to time the hooks
    profiler = trainer.profiler  # type: ignore[attr-defined]
    return type(profiler) is PassThroughProfiler and trainer.lightning_module is not None


class _Within:
    """Says, as Lightning does, which hook a figure is logged in; past ``nn.Module.__setattr__``, which is slow."""

    __slots__ = ("_before", "_hook", "_state")

    def __init__(self, module: LightningModule, hook: str) -> None:
        self._state, self._hook = module.__dict__, hook

    def __enter__(self) -> None:
        self._before = self._state["_current_fx_name"]
        self._state["_current_fx_name"] = self._hook

    def __exit__(self, *_: object) -> None:
        self._state["_current_fx_name"] = self._before


def spare_overhead() -> None:
    """Use the shortcuts from now on, in this process; none with a Lightning whose inside they do not know."""
    if not lightning.__version__.startswith(KNOWN):
        return
    _ResultMetric.to = _move_where_needed  # type: ignore[method-assign]
    LightningModule.log = _log_again  # type: ignore[method-assign]
    call._call_callback_hooks = _call_existing_hooks
    call._call_lightning_module_hook = _call_module_hook
    call._call_strategy_hook = _call_strategy_hook
    lightning_module.is_param_in_hook_signature = _is_param  # type: ignore[attr-defined]
