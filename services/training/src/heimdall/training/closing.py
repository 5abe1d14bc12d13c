"""What a run says at its end: the figures, where they are, and the one command that shows them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from heimdall.tasks.base import Task
from heimdall.training.config import RunConfig

if TYPE_CHECKING:
    from heimdall.training.pipeline import TrainingResult

MINUTE = 60
LOG_WIDTH = 140
NARROW = 100


def make_console(*, quiet: bool) -> Console:
    """Where a run speaks: as wide as the terminal; in a log, as wide as its table."""
    console = Console(quiet=quiet)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def print_closing(console: Console, task: Task[Any], config: RunConfig, result: TrainingResult) -> None:
    """Print the report's table, its notes, and where everything is."""
    console.print()
    if result.report.rows:
        table = Table(title=f"{task.name} on the test data", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        first, *others = result.report.columns
        table.add_column(first)
        for column in others:
            # on a narrow terminal names and headings wrap; figures never do
            heading = column.replace(" ", "\n") if console.width < NARROW else column
            table.add_column(heading, justify="right", no_wrap=True)
        for row in result.report.rows:
            table.add_row(*row)
        console.print(table)
    for note in result.report.notes:
        console.print(note, highlight=False, soft_wrap=True)
    console.print(
        f"Took {duration(result.seconds)}. Everything is in {short(result.output_dir)}",
        highlight=False,
        soft_wrap=True,
    )
    if config.logger != "mlflow":
        return
    if result.model_version:
        console.print(f"Registered {task.model_name} version {result.model_version}", highlight=False)
    see = f"See it with: [bold]{as_typed(f'ui --run {result.run_id}')}[/bold]"
    if not result.delivered:
        see = f"Not everything has reached the tracking server yet; deliver it with: [bold]{as_typed('sync')}[/bold]"
    console.print(f"Run {result.run_id}. {see}", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    minutes, rest = divmod(round(seconds), MINUTE)
    hours, minutes = divmod(minutes, MINUTE)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def as_typed(words: str) -> str:
    """``heimdall WORDS`` as it can be pasted here: with the way to it where the shell does not know it."""
    beside = Path(sys.executable).with_name("heimdall")
    program = "heimdall" if shutil.which("heimdall") or not beside.exists() else short(beside)
    return f"{program} {words}"


def short(path: Path) -> str:
    """``path`` as it is seen from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
