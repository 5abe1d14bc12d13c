"""The training step without Lightning's detours, where nothing unusual is asked of it.

Lightning leads each step through some forty calls that look for hooks, profilers, scalers and strategies: a tenth of a
step of 10 ms. What there is to call is the same at every step, so it is found once an epoch. Order of calls, counters
and figures are those of Lightning 2.6; whatever is unusual, and any other Lightning, goes the usual way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.utils._pytree import tree_leaves

from heimdall.training.overhead import KNOWN, Within, figures_of_step

HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
UNUSUAL = ("optimizer_step", "backward")
TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def step_directly(trainer: Trainer) -> None:
    """Have ``trainer`` make its steps with :class:`DirectEpochLoop`; nothing happens with an unknown Lightning."""
    if lightning.__version__.startswith(KNOWN):
        loop = DirectEpochLoop(trainer, min_steps=trainer.min_steps, max_steps=trainer.max_steps)
        trainer.fit_loop.epoch_loop = loop


class DirectEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, with a step of its own where :func:`is_plain` says so."""

    _step: DirectStep | None = None
    _frees_early = False

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Find out what the steps of this epoch have to call."""
        super().on_run_start(data_fetcher)
        self._frees_early = nobody_watches_gradients_go(self.trainer)
        plain = is_plain(self.trainer) and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
        self._step = DirectStep(self) if plain and self._frees_early else None

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """One batch. Raises StopIteration where a hook wants the epoch to end."""
        self._free_gradients()
        step = self._step
        if step is None or self.restarting or self.automatic_optimization._skip_backward:
            super().advance(data_fetcher)
            return
        self.val_loop.restarting = False
        progress, connector = self.batch_progress, self.trainer._logger_connector
        number = progress.current.ready
        batch = step.to_device(next(data_fetcher)[0])
        progress.is_last_batch = data_fetcher.done
        progress.increment_ready()
        connector.on_batch_start(batch)
        output: dict[str, Any] | None = None
        goes_on = True
        if batch is None:
            self._warning_cache.warn("The training loader gave None in place of a batch: no step is made for it.")
        elif goes_on := step.begin(batch, number):
            progress.increment_started()
            output = step.make(batch, number)
        else:
            progress.increment_by(0, is_last_batch=True)
        progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if not goes_on:
            raise StopIteration
        step.call("on_train_batch_end", output, batch, number)
        log = figures_of_step(connector, self._results)
        progress.increment_completed()
        if not self._should_accumulate() and connector.should_update_logs:
            connector.log_metrics(log)

    def _free_gradients(self) -> None:
        """Free the last step's gradients before the forward pass, not after it as Lightning does.

        Forward and backward then use the same memory again: a ConvNeXt-T otherwise takes its gradients' hundred
        megabytes anew from the system at each step, in 20,000 page faults. Gradients that are accumulated stay.
        """
        if self._frees_early and self.batch_progress.current.ready % self.trainer.accumulate_grad_batches == 0:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()

    def _should_accumulate(self) -> bool:
        # asked several times a step, and no is the usual answer
        return self.trainer.accumulate_grad_batches > 1 and super()._should_accumulate()


class DirectStep:
    """What a step of one epoch consists of."""

    def __init__(self, loop: DirectEpochLoop) -> None:
        trainer = loop.trainer
        self._loop, self._trainer, self._module = loop, trainer, trainer.lightning_module
        self._optimizer = trainer.optimizers[0]
        self._strategy, self._device = trainer.strategy, trainer.strategy.root_device
        self._accumulated = trainer.accumulate_grad_batches
        self._counts = loop.automatic_optimization.optim_progress.optimizer
        self._hooks = {name: hooks(trainer, name) for name in HOOKS}
        self._may_end = is_overridden("on_train_batch_start", self._module)
        self._first_evaluation = True
        self._numbered = is_param_in_hook_signature(self._module.training_step, "batch_idx", min_args=2)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a hook of the callbacks and the module; what the last one says."""
        answer = None
        if found := self._hooks[name]:
            with Within(self._module, name):
                for hook in found:
                    answer = hook(*arguments)
        return answer

    def to_device(self, batch: Any) -> Any:
        """``batch`` with its tensors where the module is."""
        there = all(isinstance(leaf, Tensor) and leaf.device == self._device for leaf in tree_leaves(batch))
        return batch if there else move_data_to_device(batch, self._device)

    def begin(self, batch: Any, number: int) -> bool:
        """Say that a batch begins; whether it is to be trained on."""
        answer = self.call("on_train_batch_start", batch, number)
        return not (self._may_end and answer == -1)

    def make(self, batch: Any, number: int) -> dict[str, Any]:
        """Forward, backward and, unless gradients are still accumulated, the update; what the module returned."""
        arguments = (batch, number) if self._numbered else (batch,)
        self._first_evaluation = True
        zeroed = self._zeroed if number % self._accumulated == 0 else None
        closure = Closure(partial(self._forward, arguments), self._backward, zeroed)
        if self._loop._should_accumulate():
            with _block_parallel_sync_behavior(self._strategy, block=True):
                closure()
        else:
            self._counts.step.increment_ready()
            self._optimizer.step(partial(self._ready_for_update, closure))
            self._counts.step.increment_completed()
        result = closure.consume_result()
        return {} if result.loss is None else result.asdict()

    def _forward(self, arguments: tuple[Any, ...]) -> ClosureResult:
        with Within(self._module, "training_step"):
            output = self._strategy.training_step(*arguments)
        if output is None and self._trainer.world_size > 1:
            raise RuntimeError("With several processes no training_step may return None: the others would wait for it.")
        return ClosureResult.from_training_step_output(output, self._accumulated)

    def _backward(self, loss: Tensor) -> None:
        self.call("on_before_backward", loss)
        loss.backward()  # type: ignore[no-untyped-call]
        self.call("on_after_backward")

    def _zeroed(self) -> None:
        if not self._first_evaluation:  # of an optimizer that asks for the loss several times a step, like LBFGS
            self._optimizer.zero_grad()
        self._first_evaluation = False
        for count in (self._counts.zero_grad.increment_ready, self._counts.zero_grad.increment_started):
            count()
        self._counts.zero_grad.increment_completed()

    def _ready_for_update(self, closure: Closure) -> Tensor | None:
        loss = closure()
        self.call("on_before_optimizer_step", self._optimizer)
        with Within(self._module, "configure_gradient_clipping"):
            self._module.configure_gradient_clipping(
                self._optimizer,
                gradient_clip_val=self._trainer.gradient_clip_val,
                gradient_clip_algorithm=self._trainer.gradient_clip_algorithm,
            )
        return loss


def hooks(trainer: Trainer, name: str) -> list[Callable[..., Any]]:
    """What is to be called for a hook: of callbacks, then of the module, those that do something."""
    module: LightningModule = trainer.lightning_module
    found: list[Callable[..., Any]] = [
        partial(getattr(callback, name), trainer, module)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if is_overridden(name, callback, Callback)
    ]
    return [*found, getattr(module, name)] if is_overridden(name, module, LightningModule) else found


def nobody_watches_gradients_go(trainer: Trainer) -> bool:
    """Whether it is all the same when gradients are freed."""
    module: LightningModule = trainer.lightning_module
    name = "on_before_zero_grad"
    return (
        module.automatic_optimization
        and not is_overridden("optimizer_zero_grad", module, LightningModule)
        and not is_overridden(name, module, LightningModule)
        and not any(is_overridden(name, callback, Callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    )


def is_plain(trainer: Trainer) -> bool:
    """Whether all that a step does is known here: one optimizer, no scaler, nothing about the step overridden."""
    module, strategy, precision = trainer.lightning_module, trainer.strategy, trainer.precision_plugin
    one_device = type(strategy) is SingleDeviceStrategy and strategy.model is module
    averages = type(strategy) is DDPStrategy and strategy._model_averager is None
    scales = type(precision) is MixedPrecision and precision.scaler is not None
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return (
        len(trainer.optimizers) == 1
        and isinstance(trainer.optimizers[0], torch.optim.Optimizer)
        and (one_device or averages)
        and type(precision) in (Precision, MixedPrecision)
        and not scales
        and type(trainer.profiler) is PassThroughProfiler  # type: ignore[attr-defined]
        and not any(is_overridden(name, module, LightningModule) for name in (*UNUSUAL, *TRANSFERS))
        and not (data and any(is_overridden(name, data) for name in TRANSFERS))
    )
