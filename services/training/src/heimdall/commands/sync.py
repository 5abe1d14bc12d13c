"""``heimdall sync``: deliver what is still waiting in the journals, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heimdall.errors import DataError, ServiceError, UsageError

if TYPE_CHECKING:
    from heimdall.settings import Settings

SUMMARY = "Deliver what is still waiting in the journals."


@click.command(name="sync", help=SUMMARY, short_help=SUMMARY)
@click.argument("place", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="All journals of this machine; the default without DIR.")
@click.option(
    "--again", is_flag=True, help="Deliver from the start, also what a server has got before; needs DIR. Harmless."
)
@click.option(
    "--timeout-seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Give up after this time without progress.",
)
def command(place: Path | None, everything: bool, again: bool, timeout_seconds: float) -> None:
    """DIR is one journal or a folder of them, for example copied from another machine."""
    from heimdall.training.options import settings as read_settings

    if place is not None and everything:
        raise UsageError("DIR and --all were both given.", mend="Give one of them.")
    if again and place is None:
        raise UsageError("--again was given without DIR.", mend="Name the journal to deliver anew.")
    settings = read_settings()
    folders = _folders(place, settings, again=again)
    if not folders:
        click.echo("Everything is delivered.")
        return
    left = [folder for folder in folders if not _deliver(folder, settings, timeout_seconds)]
    if left:
        raise ServiceError(
            f"{len(left)} of {len(folders)} journals are not delivered yet.",
            mend="Nothing is lost: `heimdall status` says why, `heimdall sync` tries again.",
        )


def _folders(place: Path | None, settings: Settings, *, again: bool) -> list[Path]:
    from heimdall.tracking.cursor import Cursor
    from heimdall.tracking.journal import journals
    from heimdall.tracking.sweep import restart, undelivered

    root = place or settings.journal_dir
    found = journals(root)
    if place is not None and not found:
        raise DataError(f"There is no journal in {place}.", mend="A journal holds files named segment-0001.journal.")
    if again:
        for folder in found:
            restart(folder)
    waiting = undelivered(root)
    return [folder for folder in found if folder in waiting or Cursor.load(folder).set_aside]


def _deliver(folder: Path, settings: Settings, timeout_seconds: float) -> bool:
    from rich.console import Console

    from heimdall.errors import ConfigError
    from heimdall.tracking.courier import deliver_run
    from heimdall.tracking.cursor import Cursor, is_delivered, waiting_bytes
    from heimdall.tracking.journal import is_written

    console = Console(stderr=True)
    if is_written(folder):
        console.print(f"{folder.name}: still being written; its own courier delivers it.")
        return True
    with console.status(folder.name) as line:

        def give_up(idle_seconds: float) -> bool:
            cursor = Cursor.load(folder)
            waiting = f"{waiting_bytes(folder, cursor) / 1e6:.1f} MB of records, {len(cursor.pending)} files to go"
            line.update(f"{folder.name}: {waiting}  {cursor.problem}")
            return idle_seconds > timeout_seconds

        try:
            done = deliver_run(folder, settings, give_up, wait_seconds=timeout_seconds)
        except ConfigError as error:
            console.print(f"{folder.name}: {error}")
            return False
    cursor = Cursor.load(folder)
    done = done or is_delivered(folder, cursor)
    outcome = f"delivered, {cursor.delivered} records, run {cursor.run_id}" if done else f"waits: {cursor.problem}"
    console.print(f"{folder.name}: {outcome}")
    for damage in cursor.damaged:
        console.print(f"  damaged and lost: {damage}")
    if cursor.refused:
        console.print(f"  refused by the server: {cursor.refused}, first: {cursor.refusals[0]}")
    return done
