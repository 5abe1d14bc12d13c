"""What Lightning spends on every step without need, spared.

Measured on lightning 2.6.6: a figure that is logged costs a fifth of a millisecond, nearly all of it in checks of
arguments that were the same at the step before; a millisecond where it also walks through each stored figure's
attributes to move them to the device where they already are. Every shortcut here leaves whatever is unusual to
Lightning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection, _ResultMetric

KNOWN = "2.6."

_move = _ResultMetric.to
_log = LightningModule.log


def _move_where_needed(self: _ResultMetric, *args: Any, **kwargs: Any) -> _ResultMetric:
    where = args[0] if args else kwargs.get("device")
    is_there = self.is_tensor and isinstance(where, torch.device) and self.value.device == where
    return self if is_there else _move(self, *args, **kwargs)


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


class Within:
    """Says, as Lightning does, which hook a figure is logged in; past ``nn.Module.__setattr__``, which is slow."""

    __slots__ = ("_before", "_hook", "_state")

    def __init__(self, module: LightningModule, hook: str) -> None:
        self._state, self._hook = module.__dict__, hook

    def __enter__(self) -> None:
        self._before = self._state["_current_fx_name"]
        self._state["_current_fx_name"] = self._hook

    def __exit__(self, *_: object) -> None:
        self._state["_current_fx_name"] = self._before


def figures_of_step(connector: Any, results: _ResultCollection) -> dict[str, torch.Tensor]:
    """Note the figures of a step that is done; those that are to be logged, by name.

    Nothing is read back from the device: Lightning turns what a progress bar would show into numbers at every step,
    which on a GPU waits until all work is done. Whoever asks for ``progress_bar_metrics`` still gets them.
    """
    log: dict[str, torch.Tensor] = {}
    for figure in results.values():
        meta, value = figure.meta, figure._forward_cache
        if figure.has_reset or not meta.on_step or not isinstance(value, torch.Tensor):
            continue
        name, own_name = results._forked_name(figure, on_step=True)
        value = value if meta.enable_graph else value.detach()
        connector._callback_metrics[name] = connector._callback_metrics[own_name] = value
        if meta.logger:
            log[own_name] = value
    connector._logged_metrics.update(log)
    results.batch = results.batch_size = None
    return log


@contextmanager
def spared_overhead() -> Iterator[None]:
    """Use the shortcuts meanwhile, in this process; none with a Lightning whose inside they do not know."""
    if not lightning.__version__.startswith(KNOWN):
        yield
        return
    _ResultMetric.to, LightningModule.log = _move_where_needed, _log_again  # type: ignore[method-assign]
    try:
        yield
    finally:
        _ResultMetric.to, LightningModule.log = _move, _log  # type: ignore[method-assign]
