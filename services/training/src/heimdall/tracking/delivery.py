"""Delivers one journal to one sink: at least once, in order, with a cursor that says how far it got.

Records and files go their own ways, so that a checkpoint of many gigabytes does not hide the metrics behind it:
:meth:`Delivery.deliver_records` and :meth:`Delivery.deliver_file` are called by two threads, over and over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from heimdall.errors import ConfigError
from heimdall.tracking import journal
from heimdall.tracking.cursor import Cursor
from heimdall.tracking.files import FileDelivery
from heimdall.tracking.limits import Batch
from heimdall.tracking.portion import Portion
from heimdall.tracking.records import Damage, Position, Record, read_records
from heimdall.tracking.sinks import PermanentError, RunStart, Sink, TransientError

DOUBTFUL_ATTEMPTS = 12
LINGER_SECONDS = 1.0
"""How long records may wait for more of their kind, so that one call carries many."""


class Delivery:
    """One journal on its way. Whoever makes one holds the journal's courier lock."""

    def __init__(self, folder: Path, sink: Sink, *, place: str, experiment: str) -> None:
        """``place`` is the tracking URI without secrets; ``experiment`` serves journals whose header is lost.

        Raises :class:`ConfigError` where the journal has begun to be delivered to another place.
        """
        self.folder, self.sink = folder, sink
        self.mutex = threading.RLock()
        self.cursor = Cursor.load(folder)
        if self.cursor.run_id and self.cursor.place != place:
            raise ConfigError(
                f"The journal {folder.name} belongs to {self.cursor.place}, not to {place}.",
                mend="Set MLFLOW_TRACKING_URI to that, or deliver it anew from its start with --again.",
            )
        self.cursor.place = place
        self.cursor.try_refused_files_again()
        self.run_id = ""  # known to exist on the other side
        self.files = FileDelivery(self)
        self._experiment = experiment
        self._portion: Portion | None = None
        self._reader: Iterator[Record | Damage] | None = None
        self._sent_at = 0.0

    @property
    def start(self) -> RunStart:
        """What the journal's header says, and what is known of the run since."""
        head = journal.header(self.folder)
        return RunStart(
            key=head["run_key"],
            name=head.get("run_name") or head["run_key"],
            experiment=head.get("experiment") or self._experiment,
            start_ms=head.get("start_ms") or int(self.folder.stat().st_mtime * 1000),
            tags=head.get("tags") or {},
            run_id=self.cursor.run_id or head.get("run_id") or "",
        )

    def save(self) -> None:
        """Make the cursor durable."""
        with self.mutex:
            self.cursor.save(self.folder)

    def ensure_run(self) -> None:
        """Make sure that the run exists on the other side, once a process."""
        if not self.run_id:
            remote = self.sink.ensure_run(self.start)
            with self.mutex:
                self.files.learn(remote.artifacts)
                self.cursor.run_id = remote.run_id
                self.cursor.went_on()
                self.save()
            self.run_id = remote.run_id

    def deliver_records(self) -> bool:
        """Deliver one portion, if there is one and it is time; whether anything was delivered.

        Raises :class:`TransientError`; calling again goes on where it stopped.
        """
        is_open = journal.is_written(self.folder)  # asked before reading: what is read then is all there is
        with self._stumbling():
            self.ensure_run()
            portion = self._fill(ended=not is_open)
            if not portion.records and not portion.damaged and not (portion.complete and not self.cursor.done):
                return False
            in_time = time.monotonic() < self._sent_at + LINGER_SECONDS
            if in_time and is_open and not portion.full and not portion.forced:
                return False
            portion.cut()
            while portion.parts:
                self._write(portion.parts[0])
                portion.parts.pop(0)
            if portion.reopened:
                self.sink.set_status(self.run_id, "RUNNING", 0)
        delivered = bool(portion.records or portion.damaged)
        self._accept(portion)
        return delivered

    def finish(self) -> bool:
        """Close the run on the other side once nothing is left to do; whether everything is delivered."""
        with self.mutex:
            cursor = self.cursor
            if cursor.done or not cursor.complete or cursor.pending or not cursor.manifest_sent or not self.run_id:
                return cursor.done
        with self._stumbling():
            self.sink.set_status(self.run_id, cursor.status, cursor.ended_ms)
        with self.mutex:
            cursor.done = True
            self.save()
            self.files.clear()
        return True

    def _fill(self, *, ended: bool) -> Portion:
        cursor = self.cursor
        if self._portion is None:
            self._portion = Portion(Position(cursor.offset, cursor.number, cursor.doubtful), cursor.segment)
        portion = self._portion
        while not portion.full and not portion.sealed:
            parts = journal.segments(self.folder)
            if portion.segment > len(parts):
                raise FileNotFoundError(self.folder)  # cleaned away
            is_last = portion.segment == len(parts)
            if self._reader is None:
                path = parts[portion.segment - 1]
                self._reader = read_records(path, portion.position, ended=ended or not is_last)
            for item in self._reader:
                if portion.add(item, self.folder):
                    return portion
            self._reader = None
            if not is_last:
                portion.next_segment()
                continue
            if ended and not portion.complete:
                portion.complete = True
                if not (portion.status or (cursor.status and not portion.records)):
                    portion.died()
            break
        return portion

    def _accept(self, portion: Portion) -> None:
        with self.mutex:
            cursor = self.cursor
            position = portion.position
            cursor.segment, cursor.offset = portion.segment, position.offset
            cursor.number, cursor.doubtful = position.number, position.doubtful
            cursor.delivered += portion.records
            cursor.pending += [asdict(item) for item in portion.files]
            cursor.damaged += portion.damaged
            if portion.reopened:
                cursor.status = cursor.reason = ""
            if portion.status:
                cursor.status, cursor.reason, cursor.ended_ms = portion.status, portion.reason, portion.ended_ms
            cursor.complete, cursor.done = portion.complete, False
            cursor.went_on()
            self.save()
        self._portion = self._reader = None
        self._sent_at = time.monotonic()

    def _write(self, part: Batch) -> None:
        try:
            self.sink.write_batch(self.run_id, part)
        except PermanentError as error:
            self._split(part, error)
        except TransientError as error:
            if not error.doubtful or self.cursor.attempts < DOUBTFUL_ATTEMPTS:
                raise
            self.sink.ensure_run(self.start)  # raises where it is the server that is in trouble, not this batch
            self._split(part, error)

    def _split(self, part: Batch, error: Exception) -> None:
        if len(part) > 1:
            for half in part.halves():
                self._write(half)
            return
        names = [point.name for point in part.points] + [*part.params, *part.tags]
        with self.mutex:
            self.cursor.refuse(f"{names[0]}: {error}")

    @contextmanager
    def _stumbling(self) -> Iterator[None]:
        try:
            yield
        except TransientError as error:
            with self.mutex:
                self.cursor.stumbled(str(error))
                self.save()
            raise
