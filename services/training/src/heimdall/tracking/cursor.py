"""How far the delivery of a journal got: one small file, replaced atomically by whoever holds the courier's lock."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from heimdall.tracking import journal

VERSION = 1
KEPT_REASONS = 20


@dataclass
class Cursor:
    """Delivered: every segment before ``segment``, and in it every record up to ``number`` (byte ``offset``)."""

    version: int = VERSION
    run_id: str = ""  # MLflow's; empty until the run exists there
    place: str = ""  # tracking URI without secrets that the run id belongs to
    segment: int = 1
    offset: int = 0
    number: int = 0
    doubtful: bool = False
    delivered: int = 0  # records, over all segments
    pending: list[dict[str, Any]] = field(default_factory=list)  # staged files not yet uploaded
    set_aside: list[dict[str, Any]] = field(default_factory=list)  # staged files the server refused
    manifest_sent: bool = True
    status: str = ""  # what the session ended with; empty while it runs
    reason: str = ""  # why, where the trainer did not say itself
    ended_ms: int = 0
    complete: bool = False  # read to the end, and nobody writes
    done: bool = False  # all of it is delivered, status included
    damaged: list[str] = field(default_factory=list)
    refused: int = 0  # records and files that the server will never take
    refusals: list[str] = field(default_factory=list)
    problem: str = ""  # why delivery does not go on at the moment
    problem_since: float = 0.0
    attempts: int = 0

    @classmethod
    def load(cls, folder: Path) -> Cursor:
        """The cursor of a journal; a fresh one where it is missing or unreadable: delivering twice is harmless."""
        try:
            values = json.loads((folder / "cursor.json").read_text(encoding="utf-8"))
            known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
            return cls(**known) if values.get("version") == VERSION else cls()
        except (OSError, ValueError, TypeError, AttributeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Replace the file on the disk."""
        replace_file(folder / "cursor.json", json.dumps(asdict(self)))

    def stumbled(self, reason: str) -> None:
        """Remember why delivery does not go on, and since when."""
        self.problem_since = self.problem_since if self.problem else time.time()
        self.problem, self.attempts = reason, self.attempts + 1

    def went_on(self) -> None:
        """Forget the last problem."""
        self.problem, self.problem_since, self.attempts = "", 0.0, 0

    def try_refused_files_again(self) -> None:
        """Let files that the server refused wait again: limits and rights may have changed."""
        if self.set_aside:
            names = tuple(f"{item['destination']}: " for item in self.set_aside)
            self.refusals = [reason for reason in self.refusals if not reason.startswith(names)]
            self.refused -= len(self.set_aside)
            self.pending, self.set_aside, self.done = self.pending + self.set_aside, [], False

    def refuse(self, what: str) -> None:
        """Count something the server will never take; the first reasons are kept."""
        self.refused += 1
        if len(self.refusals) < KEPT_REASONS:
            self.refusals.append(what)


def replace_file(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def is_delivered(folder: Path, cursor: Cursor | None = None) -> bool:
    """Whether everything in the journal has reached the server and nobody writes to it."""
    cursor = cursor or Cursor.load(folder)
    parts = journal.segments(folder)
    if not parts or not cursor.done or journal.is_written(folder):
        return False
    return cursor.segment == len(parts) and cursor.offset >= parts[-1].stat().st_size


def waiting_bytes(folder: Path, cursor: Cursor) -> int:
    """Bytes of records that are not delivered yet."""
    sizes = [path.stat().st_size for path in journal.segments(folder)]
    return max(0, sum(sizes[cursor.segment - 1 :]) - cursor.offset)
