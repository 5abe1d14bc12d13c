"""From what a person typed to a running pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from heimdall import logs
from heimdall.settings import Settings
from heimdall.tasks.base import Task
from heimdall.training import options
from heimdall.training.config import DISABLE_MLFLOW_WARNING, RunConfig
from heimdall.training.resume import find_run


def train(task: Task[Any], flags: Mapping[str, Any], file: Path | None) -> int:
    """Read all options, run the pipeline; the exit code."""
    settings = read_settings(task)
    run_config, task_config = read(task, flags, file, settings)
    if run_config.disable_mlflow:
        click.echo(DISABLE_MLFLOW_WARNING, err=True)
        run_config = run_config.without_deprecated()
    debug = bool(os.environ.get("HEIMDALL_DEBUG"))
    logs.configure(quiet=True, debug=debug, show_progress=not run_config.quiet and run_config.enable_progress_bar)

    from heimdall.training.pipeline import TrainingPipeline

    TrainingPipeline(task, task_config, run_config, settings).run()
    return 0


def read(task: Task[Any], flags: Mapping[str, Any], file: Path | None, settings: Settings) -> tuple[RunConfig, Any]:
    """The configuration of run and task. A resumed run goes on with its own options where nothing else is said."""
    models: list[type[BaseModel]] = [RunConfig, task.config_model]
    run_config, task_config = options.read(models, flags, file=file)
    found = find_run(run_config, task.name, settings)
    if found is not None:
        run_config, task_config = options.read(models, flags, file=file, saved=found.record.options)
    return run_config, task_config


def read_settings(task: Task[Any]) -> Settings:
    """Where things are; runs of a task belong to the experiment named after its model, unless one is set."""
    settings = options.settings()
    if "mlflow_experiment_name" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"mlflow_experiment_name": task.model_name})
