"""``heimdall tune TASK``: which batch size and how many loader workers this machine trains fastest with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import BaseModel


class Tasks(click.Group):
    """One command a task; a task is imported only when its command runs or shows its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the installed tasks."""
        del ctx
        from heimdall.tasks.base import task_names

        return task_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of one task, with the options it is trained with."""
        del ctx
        return tune_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the tasks without importing them."""
        names = self.list_commands(ctx)
        with formatter.section("Tasks"):
            formatter.write_dl([(name, f"heimdall tune {name} --help shows its options") for name in names])


def tune_command(name: str) -> click.Command:
    """``heimdall tune NAME``."""
    from heimdall.tasks.base import find_task
    from heimdall.training.command import make_command
    from heimdall.training.config import RunConfig

    task = find_task(name)
    sections: dict[str, type[BaseModel]] = {
        f"Options of {task.name}": task.config_model,
        "Options of every run": RunConfig,
    }

    def run(flags: dict[str, Any], config_file: Path | None) -> int:
        from rich.console import Console

        from heimdall.training.tune import print_tuning, tune

        print_tuning(Console(), task.name, tune(task, flags, config_file))
        return 0

    summary = f"Measure which batch size and how many loader workers train {task.name} fastest here; trains nothing."
    return make_command(name, summary, sections, run)


@click.command(cls=Tasks, name="tune")
def command() -> None:
    """Measure which batch size and how many loader workers train fastest here."""
