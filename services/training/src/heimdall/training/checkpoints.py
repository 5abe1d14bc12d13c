"""When to save, what is best, and what a resumed run puts back.

All saves but one happen between two batches or at the end of training: moments at which everything about the last
batch is done. The exception is a signal during validation: then the state at the start of the validation is saved, with
the mark that this validation is to be run again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from heimdall.errors import ConfigError
from heimdall.tasks.base import Monitor
from heimdall.training.agreement import Agreement
from heimdall.training.exact import random_states, running_means, set_random_states, set_running_means
from heimdall.training.loggers import History
from heimdall.training.signals import StopRequest
from heimdall.training.writer import CheckpointWriter, link

KEY = "heimdall"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
BEST_PATTERN = "epoch*-step*.ckpt"


class Checkpoints(Checkpoint):
    """Keeps the best ``save_top_k`` checkpoints, the last and the one before it; restores exactly; heeds signals."""

    def __init__(
        self,
        folder: Path,
        monitor: Monitor,
        *,
        writer: CheckpointWriter,
        stop: StopRequest,
        history: History,
        save_top_k: int = 3,
        every_n_epochs: int = 1,
        every_n_steps: int = 0,
        every_minutes: float = 0.0,
        enabled: bool = True,
        written: Callable[[Path], None] | None = None,
    ) -> None:
        self.folder, self.monitor, self.writer, self.stop, self.history = folder, monitor, writer, stop, history
        self.save_top_k, self.every_n_epochs, self.every_n_steps = save_top_k, every_n_epochs, every_n_steps
        self.every_seconds, self.enabled, self.written = every_minutes * 60, enabled, written
        self.best: list[tuple[float, str]] = []  # best first
        self.finished = False
        self._trainer: Trainer | None = None
        self._restored: dict[str, Any] | None = None
        self._candidate: tuple[float, str] | None = None
        self._saved_at = (-1, -1)
        self._saved_time = time.monotonic()
        self._validation: dict[str, Any] | None = None
        self._agreement = Agreement()
        self._answer_is_old = False
        self._reserved = False

    @property
    def last(self) -> Path:
        """Where the last checkpoint is."""
        return self.folder / LAST

    @property
    def best_path(self) -> Path:
        """The best checkpoint there is; the last one where none was ever best."""
        names = [name for _, name in self.best]
        return next((self.folder / name for name in names if (self.folder / name).exists()), self.last)

    # -- the moments -------------------------------------------------------------------------------------------------

    def position(self) -> tuple[int, int]:
        """(epoch, batches done in it), as Lightning counts them."""
        trainer = self._running()
        return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def before_batch(self) -> None:
        """Between two batches: put back what was restored; save what is due; stop if somebody asked for it."""
        trainer = self._running()
        self._put_back(trainer, in_validation=False)
        self._reserve(trainer)
        stop, by_time = self._agreement.any(self.stop.signal_number is not None, self._time_is_up())
        if stop:
            self.save(trainer)
            self.stop.stop()
        by_time, self._answer_is_old = by_time and not self._answer_is_old, False
        if self.enabled and (self._candidate is not None or self._is_due(trainer, by_time=by_time)):
            self.save(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore running means; take the signals that Lightning took."""
        del pl_module
        self._trainer = trainer
        self.finished = False
        self.stop.install()
        if self._restored is not None:
            set_running_means(trainer, self._restored["rank"][self._rank(trainer)]["means"])
            self._remove_strangers(trainer)
            if self.position()[1] == 0:
                # before the first batch of an epoch Lightning would take the validation before it for unfinished
                trainer.fit_loop.epoch_loop._restarting = False
            self._saved_at = (trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the state that a signal during this validation would save."""
        del pl_module
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._put_back(trainer, in_validation=True)
            self._validation = self._state_of_rank(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Heed a signal without waiting for the end of a long validation."""
        del pl_module
        if self._validation is not None and self._agreement.any(self.stop.signal_number is not None, False)[0]:
            self.save(trainer)
            self.stop.stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether this was one of the best; it is saved at the next clean moment."""
        del pl_module
        if self._validation is None:
            return
        self._validation = None
        metric = trainer.callback_metrics.get(self.monitor.metric)
        if metric is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ConfigError(
                f"The metric {self.monitor.metric!r} decides which checkpoint is best, but was not logged.",
                mend=f"Set --checkpoint-monitor to one of: {known}.",
            )
        name = f"epoch{trainer.current_epoch:03d}-step{trainer.global_step:08d}.ckpt"
        if self.enabled and not math.isnan(score := float(metric)):
            self._candidate = (score, name)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the resumed epoch is like any other, for schedulers that look at a metric too."""
        del pl_module
        trainer.fit_loop._restarting = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of training."""
        del pl_module
        self._agreement.settle()
        self.finished = True
        self.save(trainer)

    # -- saving ------------------------------------------------------------------------------------------------------

    def save(self, trainer: Trainer) -> None:
        """Save ``last.ckpt``; under its own name too, if it is one of the best."""
        target, evicted = self.last, ""
        if self._candidate is not None:
            score, name = self._candidate
            self._candidate = None
            ranked = sorted([*self.best, (score, name)], key=lambda b: b[0] if self.monitor.mode == "min" else -b[0])
            self.best, dropped = ranked[: self.save_top_k], ranked[self.save_top_k :]
            if name in {kept for _, kept in self.best}:
                target = self.folder / name
                evicted = dropped[0][1] if dropped else ""
        for logger in trainer.loggers:
            logger.save()
        with self.writer.together():
            if trainer.is_global_zero:
                self.writer.then(self._keep_previous)
            trainer.save_checkpoint(target)
            if trainer.is_global_zero:
                self._settle(target, evicted)
        self._saved_at = (trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.total.ready)
        self._saved_time = time.monotonic()
        self._answer_is_old = trainer.world_size > 1

    def _settle(self, target: Path, evicted: str) -> None:
        if target != self.last:
            self.writer.then(lambda: link(target, self.last))
        if evicted:
            self.writer.remove_checkpoint(self.folder / evicted)
        if self.written is not None:
            written = self.written
            self.writer.then(lambda: written(target))

    def _reserve(self, trainer: Trainer) -> None:
        """After the first step all that a checkpoint holds has its size: have the memory for it ready."""
        if self._reserved or not trainer.global_step:
            return
        self._reserved = True
        if trainer.is_global_zero and not trainer.strategy.restore_checkpoint_after_setup:
            states = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
            self.writer.reserve([trainer.lightning_module.state_dict(), states])

    def _keep_previous(self) -> None:
        if self.last.exists():
            link(self.last, self.folder / PREVIOUS)

    def _is_due(self, trainer: Trainer, *, by_time: bool) -> bool:
        epoch, done = self.position()
        if self._saved_at == (trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.total.ready):
            return False
        if done == 0:
            return epoch > 0 and epoch % self.every_n_epochs == 0
        by_steps = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        return by_steps or by_time

    def _time_is_up(self) -> bool:
        return self.every_seconds > 0 and time.monotonic() - self._saved_time >= self.every_seconds

    def _running(self) -> Trainer:
        if self._trainer is None:
            raise RuntimeError("no training is running")
        return self._trainer

    # -- what a checkpoint holds beside Lightning's own ----------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add our own state, as plain types."""
        del pl_module
        mine = self._validation or self._state_of_rank(trainer)
        checkpoint[KEY] = {
            "rank": _gather(mine, trainer),
            "best": [[score, name] for score, name in self.best],
            "finished": self.finished,
            "history": self.history.state(),
        }
        if self._validation is not None:
            _mark_validation_unfinished(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take our own state; random states are put back when the first batch is fetched."""
        del trainer, pl_module
        saved = checkpoint.get(KEY)
        if saved is None:
            raise ConfigError("The checkpoint was not written by heimdall and cannot be resumed.")
        self._restored = saved
        self.best = [(float(score), str(name)) for score, name in saved["best"]]
        self.history.load(saved["history"])

    def _put_back(self, trainer: Trainer, *, in_validation: bool) -> None:
        if self._restored is None:
            return
        saved, self._restored = self._restored["rank"][self._rank(trainer)], None
        if not in_validation and self.position()[1] > 0:
            # as in the midst of an epoch, so that the running means are not reset by the first batch
            trainer._logger_connector._first_loop_iter = True
        set_random_states(saved["random"])

    def _state_of_rank(self, trainer: Trainer) -> dict[str, Any]:
        return {"random": random_states(), "means": running_means(trainer)}

    def _rank(self, trainer: Trainer) -> int:
        saved = self._restored["rank"] if self._restored else []
        return trainer.global_rank if trainer.global_rank < len(saved) else 0

    def _remove_strangers(self, trainer: Trainer) -> None:
        """Checkpoints that were written after the one we resume from will be written again."""
        if trainer.is_global_zero:
            kept = {name for _, name in self.best}
            for path in self.folder.glob(BEST_PATTERN):
                if path.name not in kept:
                    self.writer.remove_checkpoint(path)


def _gather(state: dict[str, Any], trainer: Trainer) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [state]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states


def _mark_validation_unfinished(fit_loop: dict[str, Any]) -> None:
    """As if validation had begun and no batch of it were done: Lightning then runs it again from its first batch."""
    progress = fit_loop["epoch_loop.val_loop.batch_progress"]
    progress["current"] = dict.fromkeys(progress["current"], 0)
    progress["total"] = {**dict.fromkeys(progress["total"], 0), "ready": 1, "started": 1}
    progress["is_last_batch"] = False
