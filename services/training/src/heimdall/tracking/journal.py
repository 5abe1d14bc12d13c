"""The journal of a run: a folder that holds all that was logged until it is delivered, and survives ``kill -9``.

::

    RUN_KEY/
      segment-0001.journal   records of one session of the run; a resumed run adds a segment
      staged/XXXXXXXX/NAME   files to be uploaded: hard links, or copies
      cursor.json            how far delivery got (courier)
      artifacts.json         what was uploaded, with checksums (courier)
      courier.log            what the courier said
      writer.lock            held by the training process while a run is open
      courier.lock           held by whoever delivers
"""

from __future__ import annotations

import errno
import getpass
import os
import secrets
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from os import write
from pathlib import Path
from time import monotonic_ns
from typing import Any

from heimdall.errors import OutputError, UsageError
from heimdall.tracking import records, staging
from heimdall.tracking.locks import ProcessLock, is_locked
from heimdall.tracking.records import encode_metrics

MEMORY_LIMIT_BYTES = 64 << 20
"""What is kept in memory while the journal's file system is full."""

RETRY_SECONDS = 1.0


def new_run_key() -> str:
    """A name for a run that needs no server: ``hd-20261121-205629-3f2a9c0d41be``."""
    return f"hd-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(6)}"


def segments(folder: Path) -> list[Path]:
    """The segments of a journal, oldest first."""
    return sorted(folder.glob("segment-*.journal"))


def is_written(folder: Path) -> bool:
    """Whether a living training process has this journal open."""
    return is_locked(folder / "writer.lock")


def journals(root: Path) -> list[Path]:
    """All journals below ``root``, or ``root`` itself where it is one, oldest first."""
    if segments(root):
        return [root]
    return sorted(path for path in root.glob("*") if path.is_dir() and segments(path)) if root.is_dir() else []


def header(folder: Path) -> dict[str, Any]:
    """What the run's first readable header says; where none is readable, the folder's name is the key."""
    for segment in segments(folder):
        for record in records.read_records(segment, records.Position(), ended=True):
            if isinstance(record, records.Record) and record.kind == "h":
                found: dict[str, Any] = record.content[0]
                return found
    return {"run_key": folder.name}


class JournalWriter:
    """Appends to a journal. Thread-safe; one ``write(2)`` a record and no ``fsync``: that is the courier's work.

    Survives: the death of this process at any moment, loses nothing that :meth:`append` has returned from. A power cut
    may lose what the courier has not yet forced to the disk, at most the last five seconds.
    """

    def __init__(
        self,
        folder: Path,
        start: Mapping[str, Any],
        *,
        on_problem: Callable[[OSError], None],
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Open ``folder`` for a new session of the run that ``start`` describes.

        Raises :class:`UsageError` where another process writes to it, :class:`OutputError` where it cannot be written.
        """
        self.folder = folder
        self._on_problem = on_problem
        self._mutex = threading.RLock()
        self._unwritten: deque[bytes] = deque()
        self._unwritten_bytes = 0
        self._retry_at = 0.0
        self.lost = 0  # records that fitted neither the disk nor memory
        self.number = 0
        try:
            (folder / "staged").mkdir(parents=True, exist_ok=True)
            self._lock = ProcessLock(folder / "writer.lock")
            if not self._lock.acquire(timeout_seconds=0.5):
                raise UsageError(f"The run {folder.name} is being written by another process.", mend="Wait for it.")
            self._open(start, wall_clock)
        except OSError as error:
            raise OutputError(
                f"The journal {folder} cannot be written: {error.strerror}.",
                mend="Free some space there or set HEIMDALL_HOME to another folder.",
            ) from error

    def _open(self, start: Mapping[str, Any], wall_clock: Callable[[], int]) -> None:
        earlier = segments(self.folder)
        # wall clock at the start, monotonic from there: a clock that is set back makes no two points alike
        now = max(wall_clock() // 1_000_000, *(records.last_timestamp(path) + 1 for path in earlier), 0)
        self._offset_ns = now * 1_000_000 - monotonic_ns()
        self._last_ms = 0
        self._last_step = -1
        session = len(earlier) + 1
        self.segment = self.folder / f"segment-{session:04d}.journal"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self.segment, flags, 0o644)
        self._size = 0
        origin = {"host": socket.gethostname(), "pid": os.getpid(), "user": _user(), "source": Path(sys.argv[0]).name}
        head = {"format": records.FORMAT, **start, "session": session, "start_ms": now, **origin}
        for _ in range(2):  # twice: no single damage leaves a run without its name
            line = records.encode(self.number + 1, now, "h", head)
            os.write(self._descriptor, line)
            self._size += len(line)
            self.number += 1
        os.fsync(self._descriptor)
        for place in (self.folder, self.folder.parent):
            _fsync_folder(place)

    def append(self, kind: str, *content: Any) -> None:
        """Write one record that is no metrics.

        Where the disk is full the record waits in memory (at most 64 MiB) and ``on_problem`` is called.
        """
        with self._mutex:
            now = max((monotonic_ns() + self._offset_ns) // 1_000_000, self._last_ms)
            self.number += 1
            self._put(records.encode(self.number, now, kind, *content))

    def append_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of one step, with a time that no other metrics of this step have; else as :meth:`append`.

        Raises what :func:`~heimdall.tracking.records.encode_metrics` raises, and writes nothing then.
        """
        with self._mutex:
            now = (monotonic_ns() + self._offset_ns) // 1_000_000
            if now > self._last_ms:
                self._last_ms = now
            elif step > self._last_step:
                now = self._last_ms
            else:  # within a millisecond steps only rise: so two points of one step never share it
                now = self._last_ms = self._last_ms + 1
            line = encode_metrics(self.number + 1, now, step, metrics)
            self._last_step = step
            self.number += 1
            self._put(line)

    def _put(self, line: bytes) -> None:
        if self._unwritten:
            self._keep(line)
            self.retry()
            return
        try:
            written = write(self._descriptor, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 - a short write says no more
        except OSError as error:
            self._mend()
            self._keep(line)
            self._on_problem(error)
        else:
            self._size += written

    def _mend(self) -> None:
        # cut a half-written line off; should even that fail, the next record's RS still sets it apart
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self._size = os.fstat(self._descriptor).st_size
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def _keep(self, line: bytes) -> None:
        if self._unwritten_bytes + len(line) > MEMORY_LIMIT_BYTES:
            self.lost += 1
            return
        self._unwritten.append(line)
        self._unwritten_bytes += len(line)

    @property
    def unwritten(self) -> int:
        """Records that wait in memory for space on the disk."""
        return len(self._unwritten)

    def retry(self, *, now: bool = False) -> bool:
        """Write what waits in memory, at most once a second unless ``now``; whether nothing waits any more."""
        with self._mutex:
            if self._unwritten and (now or time.monotonic() >= self._retry_at):
                while self._unwritten:
                    line = self._unwritten[0]
                    try:
                        written = os.write(self._descriptor, line)
                    except OSError:
                        written = -1
                    if written < len(line):
                        self._mend()
                        break
                    self._size += written
                    self._unwritten_bytes -= len(self._unwritten.popleft())
            return not self._unwritten

    def stage(self, path: Path, destination: str) -> None:
        """Keep ``path`` as it is now for upload to ``destination`` (with its file name) below the run's artifacts.

        Large files are linked, so that one that is rotated away is still there; they must not be changed in place.
        Raises OSError where the file cannot be read or there is no space for a copy.
        """
        self.append("a", *staging.stage(self.folder, path, destination))

    def close(self) -> None:
        """Force everything to the disk and let go of the journal."""
        with self._mutex:
            if self._descriptor < 0:
                return
            if not self.retry(now=True):
                self.lost += len(self._unwritten)
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._on_problem(error)
            os.close(self._descriptor)
            self._descriptor = -1
            self._lock.release()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
