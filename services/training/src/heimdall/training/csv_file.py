"""A CSV file that grows row by row, and whose header may grow too, without losing a row to a crash."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from heimdall.errors import OutputError


class CsvFile:
    """Rows go to the file at once, one write each, so that ``kill -9`` loses none.

    A new column changes the header alone: rows written before stay as they are, shorter than the header, which readers
    take as empty fields. The file is copied behind its new header and put in place by a rename.

    An existing file is continued: a torn last row is cut off.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = list(columns)
        self.last_steps: dict[str, int] = {}
        self._handle: int | None = None
        if path.exists():
            self._continue()

    def append(self, row: Mapping[str, float | int]) -> None:
        """Write one row; unknown names become new columns."""
        new = [name for name in row if name not in self.columns]
        if new or not self.path.exists():
            self.columns += new
            self._rewrite_header()
        if self._handle is None:
            self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        line = _line([repr(row[name]) if name in row else "" for name in self.columns])
        try:
            written = os.write(self._handle, line)
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Let go of the file; the next row opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _rewrite_header(self) -> None:
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        with part.open("wb") as new:
            new.write(_line(self.columns))
            if self.path.exists():
                with self.path.open("rb") as old:
                    old.readline()
                    shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())
        part.replace(self.path)

    def _continue(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        rows = csv.reader(io.StringIO(data[:whole].decode("utf-8", "replace")))
        self.columns = next(rows, self.columns)
        if "step" not in self.columns:
            raise OutputError(f"{self.path} is not a file of metrics: it has no column step.")
        where = self.columns.index("step")
        for row in rows:
            for name, value in zip(self.columns, row, strict=False):
                if value:
                    self.last_steps[name] = max(self.last_steps.get(name, -1), int(float(row[where])))


def _line(fields: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode()
