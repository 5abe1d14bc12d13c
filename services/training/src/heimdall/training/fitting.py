"""Fit and test with Lightning: the trainer, its callbacks and loggers, put together from a run's configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console
from torch import distributed

from heimdall.errors import ConfigError
from heimdall.tasks.base import Monitor, Task, TaskConfig
from heimdall.training.checkpoints import Checkpoints
from heimdall.training.config import RunConfig
from heimdall.training.folder import RunFolder, plain
from heimdall.training.kernels import FusedOptimizers, calm_collector, keep_memory, lay_out
from heimdall.training.loading import ResumableLoader, shared
from heimdall.training.loggers import (
    CsvLogger,
    History,
    MetricLogger,
    TensorBoardLogger,
    TrackerLogger,
    write_hparams,
)
from heimdall.training.overhead import spared_overhead
from heimdall.training.progress import LearningRates, ProgressLine
from heimdall.training.resume import logged_steps
from heimdall.training.signals import StopRequest
from heimdall.training.steps import step_directly
from heimdall.training.stored import Found
from heimdall.training.writer import CheckpointWriter


class Fitting:
    """One fit and one test of one task; made before anything random happens, so that the seed covers all of it."""

    def __init__(
        self,
        task: Task[Any],
        config: TaskConfig,
        run: RunConfig,
        folder: RunFolder,
        tracker: Any,
        journal: Path,
        stop: StopRequest,
        console: Console,
    ) -> None:
        self.task, self.config, self.run, self.folder = task, config, run, folder
        self.tracker, self.journal, self.stop, self.console = tracker, journal, stop, console
        self.history = History()
        self._loggers: list[MetricLogger] = [self.history]
        seed_everything(config.seed, workers=True, verbose=False)

    def fit(self, module: LightningModule, data: LightningDataModule, found: Found | None) -> Path:
        """Train, from ``found`` on; the best checkpoint."""
        if found is not None:
            self.history.load(found.state["history"])
        self._loggers += self._chosen_loggers()
        writer = CheckpointWriter()
        checkpoints = self._checkpoints(writer)
        trainer = self._trainer(writer, [*self._callbacks(), checkpoints])
        if found is not None and found.state["finished"] and self.config.epochs <= found.epoch + int(found.epoch == 0):
            checkpoints.best = [(float(score), str(name)) for score, name in found.state["best"]]
            return checkpoints.best_path
        step_directly(trainer)
        keep_memory()
        lay_out(module, self.run)
        with (
            spared_overhead(),
            self._resumable(data, trainer, checkpoints),
            reduced(module, trainer),
            self.stop.deferred(),
            writer,
            calm_collector(),
        ):
            trainer.fit(module, datamodule=data, ckpt_path=found.path if found else None, weights_only=True)
        leave_group()
        for logger in self._loggers:
            logger.save()
        return checkpoints.best_path

    def test(self, module: LightningModule, data: LightningDataModule) -> dict[str, float]:
        """The figures of ``module`` on the test data, on one device; logged at the last step."""
        trainer = Trainer(
            accelerator=self.run.accelerator,
            devices=1,
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder.path,
        )
        found = trainer.test(module, datamodule=data, verbose=False)
        figures = {key: float(value) for part in found for key, value in part.items()}
        self.log_final(figures)
        return figures

    def log_final(self, metrics: Mapping[str, float]) -> None:
        """Log figures of the finished model at the last step."""
        step = max(self.history.next_step - 1, 0)
        epoch = max((points[-1][1] for points in self.history.points.values()), default=0)
        for logger in self._loggers[1:]:
            logger.log_metrics({**metrics, "epoch": epoch}, step)
            logger.finalize("success")

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _trainer(self, writer: CheckpointWriter, callbacks: list[Callback]) -> Trainer:
        run = self.run
        devices: Any = run.devices if run.devices == "auto" else [int(d) for d in run.devices.split(",")]
        if isinstance(devices, list) and len(devices) == 1:
            devices = devices[0]
        try:
            return Trainer(
                default_root_dir=self.folder.path,
                max_epochs=self.config.epochs,
                accelerator=run.accelerator,
                devices=devices,
                num_nodes=run.num_nodes,
                strategy=run.strategy,
                precision=run.precision,
                accumulate_grad_batches=run.accumulate_grad_batches,
                gradient_clip_val=run.gradient_clip or None,
                log_every_n_steps=run.log_every_n_steps,
                deterministic=run.deterministic or None,
                logger=self._loggers,
                callbacks=callbacks,
                plugins=[writer],
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
            )
        except (ValueError, RuntimeError, TypeError, MisconfigurationException, ImportError) as error:
            # Lightning says what of the hardware or strategy cannot be had
            without = "fsdp" in run.strategy and not torch.cuda.is_available()
            raise ConfigError(
                f"This cannot be trained as asked: {' '.join(str(error).split())}",
                mend="Sharding wants GPUs; several processes on CPUs train with --strategy ddp." if without else "",
            ) from error

    def _callbacks(self) -> list[Callback]:
        monitor = chosen_monitor(self.task, self.run)
        callbacks: list[Callback] = [FusedOptimizers()] if self.run.fused_optimizer else []
        callbacks += [LearningRates()]
        if self.run.early_stop_patience:
            callbacks.append(
                EarlyStopping(monitor.metric, mode=monitor.mode, patience=self.run.early_stop_patience, verbose=False)
            )
        if self.run.show_progress:
            callbacks.append(ProgressLine(self.console))
        return callbacks + self.task.callbacks(self.config, self.folder.report, self._publish)

    def _checkpoints(self, writer: CheckpointWriter) -> Checkpoints:
        run = self.run
        publish = run.publish_checkpoints == "all"
        return Checkpoints(
            self.folder.checkpoints,
            chosen_monitor(self.task, run),
            writer=writer,
            stop=self.stop,
            history=self.history,
            save_top_k=run.save_top_k,
            every_n_epochs=run.checkpoint_every_n_epochs,
            every_n_steps=run.checkpoint_every_n_steps,
            every_minutes=run.checkpoint_every_minutes,
            enabled=run.enable_checkpointing,
            written=(lambda path: self._publish(path, "checkpoints")) if publish else None,
        )

    def _chosen_loggers(self) -> list[MetricLogger]:
        if not is_first_process():
            return []
        match self.run.logger:
            case "mlflow":
                return [TrackerLogger(self.tracker, {**self.folder.record.logged, **logged_steps(self.journal)})]
            case "csv":
                write_hparams(self.folder.logs, self._hparams())
                return [CsvLogger(self.folder.logs)]
            case "tensorboard":
                write_hparams(self.folder.logs, self._hparams())
                return [
                    TensorBoardLogger(self.folder.logs, self.history.next_step if self.folder.record.resumed else None)
                ]
            case _:
                return []

    def _hparams(self) -> dict[str, Any]:
        return plain({**self.run.model_dump(mode="json"), **self.config.model_dump(mode="json")})

    def _publish(self, path: Path, folder: str) -> None:
        self.tracker.log_artifact(path, folder)

    @contextmanager
    def _resumable(self, data: LightningDataModule, trainer: Trainer, checkpoints: Checkpoints) -> Iterator[None]:
        """While fitting, the training loader is one that starts where training stands."""
        make, make_validation = data.train_dataloader, data.val_dataloader
        made: list[ResumableLoader] = []

        def train_dataloader() -> ResumableLoader:
            loader = ResumableLoader(
                make(),
                seed=self.config.seed,
                position=checkpoints.position,
                before_batch=checkpoints.before_batch,
                rank=trainer.global_rank,
                world=trainer.world_size,
            )
            made.append(loader)
            return loader

        def val_dataloader() -> Any:
            loader: Any = make_validation()
            share = partial(shared, rank=trainer.global_rank, world=trainer.world_size)
            return [share(part) for part in loader] if isinstance(loader, list | tuple) else share(loader)

        data.train_dataloader = train_dataloader  # type: ignore[method-assign]
        data.val_dataloader = val_dataloader  # type: ignore[method-assign]
        try:
            yield
        finally:
            for loader in made:
                loader.close()
            with suppress(AttributeError):
                del data.train_dataloader, data.val_dataloader


@contextmanager
def reduced(module: LightningModule, trainer: Trainer) -> Iterator[None]:
    """In several processes every logged figure is the mean over all of them, whether or not a task thought of it."""
    if trainer.world_size == 1:
        yield
        return
    log = module.log

    def log_reduced(*args: Any, **how: Any) -> None:
        log(*args, **{**how, "sync_dist": True})

    module.log = log_reduced  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.log


def leave_group() -> None:
    """Part from the other processes once training is done: what follows is the first one's work alone."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def is_first_process() -> bool:
    """Whether this is the process that tracks and writes; of a distributed run only one does."""
    return int(getattr(rank_zero_only, "rank", 0) or os.environ.get("RANK", 0)) == 0


def chosen_monitor(task: Task[Any], config: RunConfig) -> Monitor:
    """The task's monitor, unless the run names another."""
    mode = config.checkpoint_mode or task.monitor.mode
    return Monitor(metric=config.checkpoint_monitor or task.monitor.metric, mode=mode)
