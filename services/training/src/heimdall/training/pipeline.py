"""The recipe: data → module → trainer → fit → test → report → bundle → register."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from heimdall import logs
from heimdall.errors import HeimdallError, StoppedBySignal, UndeliveredError
from heimdall.settings import Settings
from heimdall.tasks.base import FitResult, Report, Task, TaskConfig
from heimdall.training.closing import as_typed, make_console, print_closing, short
from heimdall.training.config import RunConfig
from heimdall.training.folder import RECORD, RunFolder, RunRecord, plain, set_aside, working_in
from heimdall.training.provenance import provenance
from heimdall.training.quiet import quiet_libraries
from heimdall.training.resume import find_run
from heimdall.training.signals import StopRequest
from heimdall.training.stored import Found, last_checkpoint

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule

    from heimdall.tracking.tracker import MLflowTracker, NullTracker
    from heimdall.training.fitting import Fitting

log = logs.get(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run leaves behind."""

    run_id: str
    best_checkpoint: Path
    report: Report
    output_dir: Path
    model_version: str | None
    delivered: bool
    metrics: Mapping[str, float]
    seconds: float


class TrainingPipeline:
    """One training run of one task.

    ``tracker``: where metrics go with ``--logger mlflow``; by default MLflow as ``settings`` say.
    """

    def __init__(
        self,
        task: Task[Any],
        task_config: TaskConfig,
        run_config: RunConfig,
        settings: Settings,
        tracker: MLflowTracker | NullTracker | None = None,
    ) -> None:
        self.task = task
        self.task_config = task_config
        self.run_config = run_config.without_deprecated()
        self.settings = settings
        self.tracker = tracker
        self.console = make_console(quiet=self.run_config.quiet)

    def run(self) -> TrainingResult | None:
        """Train, test, report, register. None in the helper processes of a distributed run.

        Raises :class:`~heimdall.errors.HeimdallError`: what it was and what to do; the run then says FAILED, or KILLED
        where a signal stopped it (:class:`~heimdall.errors.StoppedBySignal`).
        """
        from heimdall.training.fitting import Fitting, is_first_process

        quiet_libraries()
        started = time.monotonic()
        first = is_first_process()
        found = find_run(self.run_config, self.task.name, self.settings)
        path = found.path if found else self.run_config.output_folder(self.task.name)
        with StopRequest() as stop, working_in(path, shared=not first):
            config = self._prepare()
            folder = self._open(path, found) if first else found or RunFolder(path, RunRecord(task=self.task.name))
            with self._tracked(folder, first=first) as tracker:
                journal = self.settings.journal_dir / tracker.run_key
                fitting = Fitting(self.task, config, self.run_config, folder, tracker, journal, stop, self.console)
                data = self.task.datamodule(config)
                module = self.task.module(config, data)
                self._log_params(tracker, config, data)
                checkpoint = fitting.fit(module, data, self._checkpoint(folder, found))
                if not first:
                    return None
                best = self.task.load(checkpoint)
                figures = fitting.test(best, data)
                result = FitResult(module=best, data=data, history=fitting.history.points, checkpoint=checkpoint)
                report = self._report(result, folder, fitting)
                bundle = self.task.bundle(best, config, folder.path / self.task.bundle_folder)
                self._publish(tracker, folder, bundle, checkpoint)
                version = self._register(tracker, best, data, report, checkpoint)
        return self._close(
            TrainingResult(
                run_id=tracker.run_id,
                best_checkpoint=checkpoint,
                report=report,
                output_dir=folder.path,
                model_version=version,
                delivered=tracker.undelivered == 0,
                metrics={**figures, **report.metrics},
                seconds=time.monotonic() - started,
            )
        )

    # -- the steps -----------------------------------------------------------------------------------------------------

    def _prepare(self) -> TaskConfig:
        cache = self.settings.cache_dir
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{self.task.name}.prepare.lock"):
            config: TaskConfig = self.task.prepare(self.task_config, cache)
        return config

    def _open(self, path: Path, found: RunFolder | None) -> RunFolder:
        from heimdall.training.loggers import next_version

        options = plain({**self.task_config.model_dump(mode="json"), **self.run_config.model_dump(mode="json")})
        options = {key: value for key, value in options.items() if key not in {"resume", "output_dir"}}
        if found is not None:
            found.update(status="running", resumed=found.record.resumed + 1, options=options)
            return found
        set_aside(path)
        folder = RunFolder(path, RunRecord(task=self.task.name))
        started = datetime.now(UTC).isoformat(timespec="microseconds")
        folder.update(started=started, log_version=next_version(path), options=options)
        return folder

    @contextlib.contextmanager
    def _tracked(self, folder: RunFolder, *, first: bool) -> Iterator[MLflowTracker | NullTracker]:
        """One run of the tracker around the training: ended as FINISHED, FAILED or KILLED, never left open."""
        from heimdall.tracking.tracker import MLflowTracker, NullTracker

        tracker: MLflowTracker | NullTracker = NullTracker()
        if first and self.run_config.logger == "mlflow":
            # the run's own key suffices to begin; MLflow's id comes while we train
            settings = self.settings.model_copy(update={"heimdall_start_wait_seconds": 0.0})
            tracker = self.tracker or MLflowTracker(settings, strict=self.run_config.strict_tracking)
        earlier = folder.record.run_key or folder.record.run_id
        tags = {"heimdall.task": self.task.name, "heimdall.output_dir": str(folder.path)}
        run_id = tracker.start_run(self.run_config.run_name or None, tags, resume=earlier or None)
        if first:
            folder.update(run_id=run_id, run_key=tracker.run_key)
            if self.run_config.publish_checkpoints == "all":
                tracker.log_artifact(folder.path / RECORD)  # with the checkpoints, enough to go on elsewhere
        try:
            yield tracker
        except StoppedBySignal as error:
            if first:
                folder.try_update(status="stopped")
            with contextlib.suppress(UndeliveredError):
                tracker.end_run("KILLED")
            error.mend = f"Continue with: {as_typed(f'train {self.task.name} --resume {short(folder.path)}')}"
            raise
        except BaseException:
            if first:
                folder.try_update(status="failed")
            with contextlib.suppress(UndeliveredError):
                tracker.end_run("FAILED")
            raise
        with contextlib.suppress(UndeliveredError):  # told below the results
            tracker.end_run("FINISHED")
        if first:
            folder.update(status="finished", run_id=tracker.run_id)

    def _log_params(self, tracker: MLflowTracker | NullTracker, config: TaskConfig, data: LightningDataModule) -> None:
        values = plain({**self.run_config.model_dump(mode="json"), **config.model_dump(mode="json")})
        dropped = {"disable_mlflow", "resume", "quiet", "enable_progress_bar", "output_dir"}
        params: dict[str, Any] = {key: value for key, value in values.items() if key not in dropped}
        digest = getattr(data, "digest", None) or getattr(getattr(data, "dataset", None), "digest", None)
        params |= {"data/digest": digest or "unknown", **provenance()}
        tracker.log_params(params)
        tracker.set_tags(
            {"mlflow.source.git.commit": str(params["git/commit"]), "mlflow.source.name": "heimdall train"}
        )

    def _checkpoint(self, folder: RunFolder, found: RunFolder | None) -> Found | None:
        if found is None:
            return None
        checkpoint = last_checkpoint(folder.checkpoints)
        for path in checkpoint.passed_over if checkpoint else ():
            log.warning("damaged checkpoint passed over", path=str(path))
        if checkpoint is None:
            self.console.print(f"Starting over in {short(folder.path)}: there is no checkpoint yet.")
        else:
            where = f"epoch {checkpoint.epoch + 1}, step {checkpoint.step}"
            self.console.print(f"Resuming {short(folder.path)} at {where}.", highlight=False)
        return checkpoint

    def _report(self, result: FitResult, folder: RunFolder, fitting: Fitting) -> Report:
        report = self.task.report(result, folder.report)
        fitting.log_final(report.metrics)
        return report

    def _publish(self, tracker: MLflowTracker | NullTracker, folder: RunFolder, bundle: Path, checkpoint: Path) -> None:
        if folder.report.exists():
            tracker.log_artifacts_dir(folder.report, "report")
        if bundle.is_dir():
            tracker.log_artifacts_dir(bundle, "bundle")
        else:
            tracker.log_artifact(bundle, "bundle")
        if self.run_config.publish_checkpoints == "best":
            tracker.log_artifact(checkpoint, "checkpoints")

    def _register(
        self,
        tracker: MLflowTracker | NullTracker,
        module: LightningModule,
        data: LightningDataModule,
        report: Report,
        checkpoint: Path,
    ) -> str | None:
        from heimdall.tracking.tracker import MLflowTracker

        if not self.run_config.register_model or not isinstance(tracker, MLflowTracker):
            return None
        from heimdall.registry.register import register_trained

        try:
            return register_trained(
                self.task,
                module,
                data,
                report,
                run_id=tracker.run_id,
                checkpoint=checkpoint,
                tracker=tracker,
                settings=self.settings,
            ).version
        except HeimdallError as error:
            # the training is not lost because the registry cannot be reached
            again = f"heimdall models register {tracker.run_id}"
            log.warning("the model is not registered", reason=str(error), later=again)
            return None

    def _close(self, result: TrainingResult) -> TrainingResult:
        print_closing(self.console, self.task, self.run_config, result)
        if self.run_config.strict_tracking and not result.delivered:
            raise UndeliveredError(
                "The run is done, but not everything has reached the tracking server.",
                mend="Deliver it with: heimdall sync",
            )
        return result
