"""The output folder of a run: what it was told, how it stands, and who works in it.

``run.json``, ``checkpoints/``, ``lightning_logs/version_N/`` (csv and tensorboard), ``report/``, ``bundle/``; what an
earlier run left in the same folder moves to ``earlier/N/``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from heimdall.errors import ConfigError

RECORD = "run.json"
Status = Literal["running", "finished", "failed", "stopped"]


class RunRecord(BaseModel):
    """What ``run.json`` says."""

    task: str
    run_id: str = ""
    run_key: str = ""
    status: Status = "running"
    log_version: int = 0
    started: str = ""
    resumed: int = 0
    options: dict[str, Any] = {}
    logged: dict[str, int] = {}  # of a run fetched from its server: the last step of each metric there


class RunFolder:
    """One run's folder. Written by the first process of a run alone."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path = path
        self.record = record

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        """Folder of the report's pictures."""
        return self.path / "report"

    @property
    def bundle(self) -> Path:
        """Folder of the final model bundle."""
        return self.path / "bundle"

    @property
    def logs(self) -> Path:
        """This run's folder for csv and tensorboard."""
        return self.path / "lightning_logs" / f"version_{self.record.log_version}"

    def update(self, **changes: Any) -> None:
        """Change ``run.json``, at once or not at all."""
        self.record = self.record.model_copy(update=changes)
        part = self.path / f".{RECORD}.part"
        with part.open("w", encoding="utf-8") as file:
            file.write(self.record.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / RECORD)

    def try_update(self, **changes: Any) -> None:
        """As :meth:`update`, where an error is being reported already."""
        with suppress(OSError):
            self.update(**changes)


def read_record(path: Path) -> RunRecord | None:
    """The record of the run in folder ``path``; None where there is none that can be read."""
    try:
        return RunRecord.model_validate(json.loads((path / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None


@contextmanager
def working_in(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Make ``path``, check that it can be written to, and keep other runs out of it.

    ``shared``: another process of the same run holds the lock.

    Raises :class:`~heimdall.errors.ConfigError`.
    """
    lock = FileLock(path / ".lock", blocking=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not shared:
            lock.acquire()
    except Timeout:
        raise ConfigError(
            f"Another run is working in {path}.", mend="Wait for it, or choose another --output-dir."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"The output folder {path} is not writable: {error.strerror}.", mend="Choose another --output-dir."
        ) from None
    try:
        yield
    finally:
        lock.release()


def set_aside(path: Path) -> None:
    """Move what an earlier run left in ``path`` to ``earlier/N``; its ``lightning_logs`` stay, they are numbered."""
    left = [path / name for name in (RECORD, "checkpoints", "report", "bundle") if (path / name).exists()]
    if not left:
        return
    earlier = path / "earlier"
    taken = [int(p.name) for p in earlier.glob("*") if p.name.isdigit()]
    target = earlier / str(max(taken, default=0) + 1)
    target.mkdir(parents=True)
    for item in left:
        shutil.move(item, target / item.name)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as JSON would hold them."""
    found: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return found
