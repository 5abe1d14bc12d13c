"""What the measurements share: tables, the page they end up on, and honest repetition."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

HEAD = """# Performance

Measured by `make bench`, which writes this page; times belong to one machine, ratios hold anywhere. What is behind the
figures is told in [the explanation](explanation/performance.md).

{machine}
"""


@dataclass
class Table:
    """Rows of one measurement."""

    title: str
    columns: Sequence[str]
    note: str = ""
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def row(self, *cells: object) -> None:
        """Add a row; numbers are given four digits."""
        self.rows.append(tuple(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))

    def text(self) -> str:
        """The table for a terminal and for Markdown."""
        lines = [tuple(self.columns), *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]

        def draw(cells: Sequence[str]) -> str:
            return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

        body = [draw(self.columns), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(draw, self.rows)]
        return "\n".join([f"## {self.title}", "", *body, *(["", self.note] if self.note else [])])


def machine() -> str:
    """One table with the machine and the versions of what matters."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    names = ("heimdall-training", "torch", "lightning", "mlflow", "numpy")
    facts = {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "GPU": gpu,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def write_section(page: Path, table: Table, command: str) -> None:
    """Put ``table`` in place of the section with its title; all others stay as they are."""
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    sections = {part.splitlines()[0]: part.rstrip() for part in re.split(r"(?m)^## ", old)[1:]}
    sections[table.title] = f"{table.text().removeprefix('## ')}\n\n`{command}`"
    body = "\n".join(f"## {sections[title]}\n" for title in sorted(sections))
    page.write_text(f"{HEAD.format(machine=machine())}\n{body}", encoding="utf-8")


def median_ratios(
    workloads: Mapping[str, Callable[[], float]], *, base: str, rounds: int
) -> dict[str, tuple[float, float]]:
    """Run all workloads in turn, ``rounds`` times; each returns a figure, for example steps a second.

    Returns the median figure and the median, over rounds, of its ratio to ``base`` in the same round: what slows the
    machine down for a while slows all of them.
    """
    figures: dict[str, list[float]] = {name: [] for name in workloads}
    for number in range(rounds):
        order = list(workloads) if number % 2 == 0 else list(reversed(workloads))
        for name in order:
            figures[name].append(workloads[name]())
    return {
        name: (
            statistics.median(values),
            statistics.median(value / other for value, other in zip(values, figures[base], strict=True)),
        )
        for name, values in figures.items()
    }
