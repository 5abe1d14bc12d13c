"""``heimdall train TASK``: data → module → trainer → fit → test → report → register."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import BaseModel

SUMMARY = "Train, track and register a model."


class Tasks(click.Group):
    """One command a task; a task is imported only when its command runs or shows its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the installed tasks."""
        del ctx
        from heimdall.tasks.base import task_names

        return task_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of one task, with the task's own options."""
        del ctx
        return train_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the tasks without importing them."""
        with formatter.section("Tasks"):
            formatter.write_dl(
                [(name, f"heimdall train {name} --help shows its options") for name in self.list_commands(ctx)]
            )


def train_command(name: str) -> click.Command:
    """``heimdall train NAME``."""
    from heimdall.tasks.base import find_task
    from heimdall.training.command import make_command
    from heimdall.training.config import RunConfig

    task = find_task(name)
    sections: dict[str, type[BaseModel]] = {
        f"Options of {task.name}": task.config_model,
        "Options of every run": RunConfig,
    }

    def run(flags: dict[str, Any], config_file: Path | None) -> int:
        from heimdall.training.start import train

        return train(task, flags, config_file)

    return make_command(name, f"Train, track and register: {task.name}.", sections, run)


@click.command(cls=Tasks, name="train", help=SUMMARY, short_help=SUMMARY)
def command() -> None:
    """Choose a task."""
