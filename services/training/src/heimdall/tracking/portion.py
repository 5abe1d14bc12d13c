"""The records that one round of delivery takes together, translated for the server."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heimdall.errors import ConfigError
from heimdall.tracking import limits
from heimdall.tracking.limits import Batch, Point
from heimdall.tracking.records import FORMAT, Damage, Position, Record


@dataclass(frozen=True)
class StagedFile:
    """A file to be uploaded: where it lies below ``staged/``, where it goes, and what it looked like."""

    staged: str
    destination: str
    bytes: int
    mtime_ns: int


@dataclass
class Portion:
    """Records up to the limits of one call, in order. ``position`` moves along with the reading."""

    position: Position
    segment: int
    batches: list[Batch] = field(default_factory=lambda: [Batch()])
    parts: list[Batch] = field(default_factory=list)  # the batches cut to size; emptied as they are delivered
    files: list[StagedFile] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    records: int = 0
    full: bool = False
    forced: bool = False
    reopened: bool = False
    sealed: bool = False  # on its way
    complete: bool = False  # read to the end of a journal that nobody writes to
    status: str = ""
    reason: str = ""
    ended_ms: int = 0
    last_ms: int = 0
    _text_bytes: int = 0

    def add(self, item: Record | Damage, folder: Path) -> bool:
        """Take one more record; whether no more should come."""
        if isinstance(item, Damage):
            self.damaged.append(str(item))
            self.batches[-1].tags["heimdall.journal_damage"] = "; ".join(self.damaged)[-4000:]
            return self.full
        self.records += 1
        self.last_ms = max(self.last_ms, item.timestamp_ms)
        adders: dict[str, Callable[[Record, Path], None]] = {
            "m": self._metrics,
            "p": self._params,
            "t": self._tags,
            "a": self._file,
            "h": self._session,
            "e": self._end,
        }
        adders.get(item.kind, self._force)(item, folder)  # kinds of a later version are skipped, not feared
        return self.full

    def next_segment(self) -> None:
        """Go on with the next session of the run."""
        self.segment += 1
        self.position = Position()
        self.complete = False

    def died(self) -> None:
        """The trainer is gone and has not said how the run ended."""
        self.status, self.ended_ms = "FAILED", self.last_ms
        self.reason = "The training process ended without saying so (killed, out of memory, or a power cut)."
        self.batches[-1].tags["heimdall.ended"] = self.reason

    def cut(self) -> None:
        """Make :attr:`parts` from what was read; nothing is added from now on."""
        if not self.sealed:
            self.parts = [part for batch in self.batches for part in batch.parts()]
            self.sealed = True

    def _metrics(self, record: Record, _folder: Path) -> None:
        step, values = record.content
        batch = self.batches[-1]
        for name, value in values.items():
            batch.points.append(Point(self._name(name), value, record.timestamp_ms, step))
        self.full = len(batch.points) + len(values) > limits.BATCH_METRICS

    def _params(self, record: Record, folder: Path) -> None:
        for name, text in record.content[0].items():
            known = self._name(name)
            value = self._text(known, text, limits.PARAM_CHARACTERS, "params", folder)
            if self.batches[-1].params.get(known, (value, 0))[0] != value:
                self.batches.append(Batch())  # one call cannot say two things of one param
            self.batches[-1].params[known] = (value, record.timestamp_ms)
        self._force(record, folder)

    def _tags(self, record: Record, folder: Path) -> None:
        for name, text in record.content[0].items():
            known = self._name(name)
            self.batches[-1].tags[known] = self._text(known, text, limits.TAG_CHARACTERS, "tags", folder)
        self._force(record, folder)

    def _file(self, record: Record, _folder: Path) -> None:
        self.files.append(StagedFile(*record.content))
        self.forced = True

    def _session(self, record: Record, folder: Path) -> None:
        head: dict[str, Any] = record.content[0]
        if head.get("format", 1) > FORMAT:  # its metrics may be of a kind that would be skipped
            raise ConfigError(
                f"The journal {folder.name} was written by a later version (format {head['format']}, not {FORMAT}).",
                mend="Deliver it with that version.",
            )
        self.forced = True
        if head.get("session", 1) > 1 or head.get("run_id"):
            self.reopened, self.status = True, ""
            self._tags(Record(record.number, record.timestamp_ms, "t", [head.get("tags") or {}]), folder)

    def _end(self, record: Record, _folder: Path) -> None:
        self.status, self.reason, self.ended_ms = *record.content, record.timestamp_ms
        self.forced = True
        if self.reason:
            self.batches[-1].tags["heimdall.ended"] = self.reason

    def _force(self, _record: Record, _folder: Path) -> None:
        self.forced = True
        self.full = self._text_bytes > limits.BATCH_BYTES

    def _name(self, name: str) -> str:
        known = limits.server_name(name)
        if known != name:
            plain = name if limits.storable(name, limits.TAG_CHARACTERS) else ascii(name)[: limits.TAG_CHARACTERS]
            self.batches[-1].tags[f"heimdall.name.{known}"] = plain
        return known

    def _text(self, name: str, text: str, limit: int, kind: str, folder: Path) -> str:
        self._text_bytes += len(text)
        if limits.storable(text, limit):
            return text
        destination = f"heimdall/{kind}/{name}.txt"
        place = folder / "staged" / secrets.token_hex(4)
        place.mkdir(parents=True)
        path = place / Path(destination).name
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        facts = path.stat()
        self.files.append(StagedFile(f"{place.name}/{path.name}", destination, facts.st_size, facts.st_mtime_ns))
        return limits.stand_in(text, destination)
