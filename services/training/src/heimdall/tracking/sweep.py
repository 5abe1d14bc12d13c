"""Which journals wait for delivery."""

from __future__ import annotations

from pathlib import Path

from heimdall.errors import UsageError
from heimdall.tracking import journal
from heimdall.tracking.cursor import Cursor, is_delivered
from heimdall.tracking.locks import ProcessLock, is_locked


def undelivered(root: Path) -> list[Path]:
    """Journals below ``root`` that hold something the server has not got, oldest first; open ones included."""
    return [folder for folder in journal.journals(root) if not is_delivered(folder)]


def left_behind(root: Path, place: str) -> list[Path]:
    """Those among them that nobody writes and nobody delivers, and that belong to the server at ``place``."""
    return [
        folder
        for folder in undelivered(root)
        if not journal.is_written(folder) and not is_locked(folder / "courier.lock") and place_of(folder) in {"", place}
    ]


def place_of(folder: Path) -> str:
    """Where a journal is to be delivered, without secrets; empty where nothing says so."""
    return Cursor.load(folder).place or str(journal.header(folder).get("place", ""))


def journal_of(root: Path, run: str) -> Path | None:
    """The journal below ``root`` of the run with this MLflow id or key, or None."""
    for folder in journal.journals(root):
        if run in {folder.name, Cursor.load(folder).run_id}:
            return folder
    return None


def restart(folder: Path) -> None:
    """Forget how far delivery got, so that the journal is delivered from its start. What is staged stays.

    Raises :class:`UsageError` while somebody delivers it.
    """
    lock = ProcessLock(folder / "courier.lock")
    if not lock.acquire(timeout_seconds=1.0):
        raise UsageError(f"The journal {folder.name} is being delivered.", mend="Wait for it.")
    try:
        for name in ("cursor.json", "artifacts.json"):
            (folder / name).unlink(missing_ok=True)
    finally:
        lock.release()
