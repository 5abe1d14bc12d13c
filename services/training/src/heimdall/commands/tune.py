"""``heimdall tune TASK``: which batch size and how many loader workers this machine trains fastest with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heimdall.commands.task_group import TaskGroup

if TYPE_CHECKING:
    from heimdall.tasks.base import Task

DOES = "Measure which batch size and how many loader workers train {task} fastest here; trains nothing."


def run(task: Task[Any], flags: Mapping[str, Any], config_file: Path | None) -> int:
    """Measure ``task`` and say what to train it with."""
    from rich.console import Console

    from heimdall.training.tune import print_tuning, tune

    print_tuning(Console(), task.name, tune(task, flags, config_file))
    return 0


@click.group(cls=TaskGroup, name="tune", run=run, does=DOES)
def command() -> None:
    """Measure which batch size and how many loader workers train fastest here."""
