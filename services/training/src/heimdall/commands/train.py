"""``heimdall train TASK``: data → module → trainer → fit → test → report → register."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heimdall.commands.task_group import TaskGroup

if TYPE_CHECKING:
    from heimdall.tasks.base import Task

SUMMARY = "Train, track and register a model."


def run(task: Task[Any], flags: Mapping[str, Any], config_file: Path | None) -> int:
    """Train ``task``."""
    from heimdall.training.start import train

    return train(task, flags, config_file)


@click.group(
    cls=TaskGroup, name="train", help=SUMMARY, short_help=SUMMARY, run=run, does="Train, track and register: {task}."
)
def command() -> None:
    """Choose a task."""
