"""A command group with one command a task, for `heimdall train` and `heimdall tune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import BaseModel

    from heimdall.tasks.base import Task

Run = Callable[["Task[Any]", Mapping[str, Any], Path | None], int]
"""``run(task, flags, config_file)`` returns the exit code."""


class TaskGroup(click.Group):
    """One command a task; a task is imported only when its command runs or shows its help.

    ``does``: what a command does with the task, a sentence with ``{task}`` in it.
    """

    def __init__(self, *args: Any, run: Run, does: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run, self.does = run, does

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the installed tasks."""
        del ctx
        from heimdall.tasks.base import task_names

        return task_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of one task, with the task's own options."""
        del ctx
        from heimdall.tasks.base import find_task
        from heimdall.training.command import make_command
        from heimdall.training.config import RunConfig

        task = find_task(cmd_name)
        sections: dict[str, type[BaseModel]] = {
            f"Options of {task.name}": task.config_model,
            "Options of every run": RunConfig,
        }
        summary = self.does.format(task=task.name)
        return make_command(cmd_name, summary, sections, lambda flags, file: self.run(task, flags, file))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the tasks without importing them."""
        with formatter.section("Tasks"):
            formatter.write_dl(
                [(name, f"heimdall {self.name} {name} --help shows its options") for name in self.list_commands(ctx)]
            )
