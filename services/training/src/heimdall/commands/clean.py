"""``heimdall clean``: remove delivered journals, old logs and checkpoints; never what is undelivered or in use."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

SUMMARY = "Remove journals that are delivered, old logs and checkpoints."
DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class Item:
    """Something that may go, and the time that says how old it is."""

    path: Path
    kind: str
    changed: float

    @property
    def bytes(self) -> int:
        """Space on the disk that removing it gives back."""
        files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files if path.stat().st_nlink == 1)


@click.command(name="clean", help=SUMMARY, short_help=SUMMARY)
@click.option(
    "--keep", default=5, show_default=True, type=click.IntRange(min=0), help="Keep the newest N of each kind."
)
@click.option(
    "--older-than", "days", default=0.0, type=click.FloatRange(min=0), metavar="DAYS", help="Only what is older."
)
@click.option(
    "--output-dir",
    default=Path("outputs"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of runs whose checkpoints and lightning_logs are looked at.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and leave it.")
def command(keep: int, days: float, output_dir: Path, dry_run: bool) -> None:
    """Kinds are journals, checkpoints (folders of finished runs) and lightning_logs/version_*."""
    from heimdall.training.options import settings as read_settings

    root = read_settings().journal_dir
    before = time.time() - days * DAY_SECONDS
    freed = count = 0
    for items in (list(_journals(root)), list(_checkpoints(output_dir, root)), list(_logs(output_dir, root))):
        newest_first = sorted(items, key=lambda item: item.changed, reverse=True)
        for item in newest_first[keep:]:
            if item.changed < before:
                count, freed = count + 1, freed + item.bytes
                click.echo(f"{'would remove' if dry_run else 'removed'} {item.kind} {item.path}")
                if not dry_run:
                    _remove(item)
    click.echo(f"{count} removed, {freed / 1e6:.1f} MB." if not dry_run else f"{count} to go, {freed / 1e6:.1f} MB.")


def _journals(root: Path) -> Iterator[Item]:
    from heimdall.tracking.cursor import Cursor, is_delivered
    from heimdall.tracking.journal import journals, segments

    for folder in journals(root):
        cursor = Cursor.load(folder)
        if is_delivered(folder, cursor) and not cursor.set_aside:
            yield Item(folder, "journal", segments(folder)[-1].stat().st_mtime)


def _checkpoints(outputs: Path, root: Path) -> Iterator[Item]:
    from heimdall.training.folder import read_record

    for folder in _runs(outputs, root):
        record = read_record(folder)
        places = list(folder.glob("earlier/*/checkpoints"))
        if record is not None and record.status == "finished":  # any other may still be resumed
            places.append(folder / "checkpoints")
        yield from (Item(place, "checkpoints", place.stat().st_mtime) for place in places if place.is_dir())


def _logs(outputs: Path, root: Path) -> Iterator[Item]:
    from heimdall.training.folder import read_record

    for folder in _runs(outputs, root):
        record = read_record(folder)
        current = f"version_{record.log_version}" if record is not None and record.status != "finished" else ""
        for place in folder.glob("lightning_logs/version_*"):
            if place.name != current:
                yield Item(place, "logs", place.stat().st_mtime)


def _runs(outputs: Path, root: Path) -> Iterator[Path]:
    """Output folders of runs that nobody works in and whose journal, if there is one, is delivered."""
    from heimdall.errors import ConfigError
    from heimdall.tracking.cursor import is_delivered
    from heimdall.training.folder import read_record, working_in

    for record_path in sorted(outputs.glob("**/run.json")):
        folder = record_path.parent
        record = read_record(folder)
        if record is None or "earlier" in folder.relative_to(outputs).parts:
            continue
        journal = root / record.run_key
        if record.run_key and journal.is_dir() and not is_delivered(journal):
            continue
        try:
            with working_in(folder):
                yield folder
        except ConfigError:
            continue


def _remove(item: Item) -> None:
    """Remove a journal under its courier's lock, so that nobody who just began to deliver loses it."""
    from heimdall.tracking.cursor import is_delivered
    from heimdall.tracking.locks import ProcessLock

    if item.kind != "journal":
        shutil.rmtree(item.path)
        return
    writer, courier = ProcessLock(item.path / "writer.lock"), ProcessLock(item.path / "courier.lock")
    try:
        if courier.acquire() and is_delivered(item.path) and writer.acquire():
            shutil.rmtree(item.path)
    finally:
        writer.release()
        courier.release()
