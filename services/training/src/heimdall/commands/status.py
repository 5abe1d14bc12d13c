"""``heimdall status``: what is waiting for delivery, since when, and why."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

SUMMARY = "Show what is waiting, and for whom."


@click.command(name="status", help=SUMMARY, short_help=SUMMARY)
@click.argument("place", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Show what is delivered as well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a run, for machines.")
def command(place: Path | None, everything: bool, as_json: bool) -> None:
    """Asks nobody: what the journals and their couriers have written down is all that it reads."""
    from heimdall.tracking.journal import journals
    from heimdall.training.options import settings as read_settings

    settings = read_settings()
    rows = [describe(folder) for folder in journals(place or settings.journal_dir)]
    shown = [row for row in rows if everything or not row["delivered"] or row["damaged"] or row["refused"]]
    if as_json:
        for row in shown:
            click.echo(json.dumps(row))
    elif not shown:
        click.echo(f"Nothing is waiting: {len(rows)} of {len(rows)} runs are delivered.")
    else:
        _print(shown)


def describe(folder: Path) -> dict[str, Any]:
    """What a journal and its courier say about themselves."""
    from heimdall.tracking import cursor as cursors
    from heimdall.tracking import journal
    from heimdall.tracking.locks import is_locked
    from heimdall.tracking.sweep import place_of

    cursor = cursors.Cursor.load(folder)
    delivered = cursors.is_delivered(folder, cursor)
    is_open = journal.is_written(folder)
    head = journal.header(folder)
    files = cursor.pending + cursor.set_aside
    return {
        "run": cursor.run_id or folder.name,
        "run_key": folder.name,
        "name": head.get("run_name", ""),
        "state": "open" if is_open else cursor.status or "ended",
        "delivered": delivered,
        "waiting_bytes": cursors.waiting_bytes(folder, cursor),
        "waiting_files": len(files),
        "waiting_file_bytes": sum(item["bytes"] for item in files),
        "since_seconds": round(time.time() - cursor.problem_since) if cursor.problem else 0,
        "why": cursor.problem or _why(delivered, is_locked(folder / "courier.lock"), is_open),
        "for": place_of(folder),
        "attempts": cursor.attempts,
        "damaged": cursor.damaged,
        "refused": cursor.refusals,
    }


def _why(delivered: bool, at_work: bool, is_open: bool) -> str:
    if delivered:
        return "delivered"
    if at_work:
        return "the run goes on" if is_open else "being delivered"
    return "nobody delivers it; run `heimdall sync`"


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("run", "state", "records", "files", "since", "why"):
        table.add_column(title, overflow="fold", no_wrap=title in {"run", "state", "since"})
    for row in rows:
        files = f"{row['waiting_files']} ({row['waiting_file_bytes'] / 1e6:.1f} MB)" if row["waiting_files"] else "-"
        since = _duration(row["since_seconds"]) if row["since_seconds"] else "-"
        records = f"{row['waiting_bytes'] / 1e3:.1f} kB" if row["waiting_bytes"] else "-"
        notes = [row["why"], *(f"damaged: {text}" for text in row["damaged"])]
        notes += [f"refused: {text}" for text in row["refused"]]
        table.add_row(row["run_key"], row["state"], records, files, since, "\n".join(notes))
    Console().print(table)


def _duration(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
