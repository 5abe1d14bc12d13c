"""Tables for people: as wide as the terminal, or as wide as they need where nobody watches."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence

PIPE_WIDTH = 200  # columns, where the output is read by a program


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    style: Callable[[Sequence[str]], str] | None = None,
) -> None:
    """Print ``rows`` on stdout; ``style`` names the rich style of a row."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    table = Table(title=title or None, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        # Text, not str: rich would read [brackets] in a run's name as its own mark-up
        table.add_row(*(Text(str(cell)) for cell in row), style=style(row) if style else None)
    Console(width=width).print(table)
