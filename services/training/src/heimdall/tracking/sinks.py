"""Where runs are delivered to. A sink is told everything at least once; telling it twice changes nothing.

Every method raises :class:`TransientError` (try again later) or :class:`PermanentError` (this will never be taken;
set it aside and report it), and nothing else. Called by one thread for records and one for files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from heimdall.tracking.limits import Batch, Point, server_name

MANIFEST = "heimdall/artifacts.json"
"""Artifact that lists every other one with its sha256 and size."""

KEY_TAG = "heimdall.run_key"
Manifest = dict[str, dict[str, Any]]
"""Destination -> ``{"sha256": …, "bytes": …}``."""


class TransientError(Exception):
    """Try again. ``doubtful``: the server answered and may never take just this; a probe tells."""

    def __init__(self, reason: str, *, doubtful: bool = False) -> None:
        super().__init__(reason)
        self.doubtful = doubtful


class PermanentError(Exception):
    """The server will never take this."""


@dataclass(frozen=True)
class RunStart:
    """What a sink needs to make a run, or to find the one it made."""

    key: str
    name: str
    experiment: str
    start_ms: int
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""  # where it is known; then the run is never made


@dataclass(frozen=True)
class RemoteRun:
    """The run on the other side, and the files that it is known to hold."""

    run_id: str
    artifacts: Manifest = field(default_factory=dict)


class Sink(Protocol):
    """The five things that delivery asks of a tracking server."""

    def ensure_run(self, run: RunStart) -> RemoteRun:
        """Make the run, once, however often this is called; a reply that was lost makes no second one."""

    def write_batch(self, run_id: str, batch: Batch) -> None:
        """Store a batch. A param that the run has with another value keeps the old one; the change becomes a tag."""

    def upload(self, run_id: str, path: Path, destination: str, *, same_as: str = "") -> None:
        """Store a file; ``same_as`` names a destination that holds the same bytes already."""

    def set_status(self, run_id: str, status: str, end_ms: int) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""

    def close(self) -> None:
        """Let go of connections. Never raises."""


def changed_param(name: str, old: str, new: str, timestamp_ms: int) -> dict[str, str]:
    """The tag that records a param of a resumed run that was given another value."""
    return {server_name(f"heimdall.changed_param.{name}"): f"{old[:3900]} -> {new[:3900]} (at {timestamp_ms} ms)"}


@dataclass
class MemoryRun:
    """A run as :class:`MemorySink` keeps it."""

    start: RunStart
    status: str = "RUNNING"
    end_ms: int = 0
    points: set[Point] = field(default_factory=set)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class MemorySink:
    """Keeps runs in memory and can be told to fail: the fake for tests of whoever delivers.

    ``failures`` are raised one a call, in order; ``refuse`` names metrics, params and tags that are never taken.
    """

    runs: dict[str, MemoryRun] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    refuse: frozenset[str] = frozenset()
    calls: list[str] = field(default_factory=list)
    closed: bool = False

    def ensure_run(self, run: RunStart) -> RemoteRun:
        """See :class:`Sink`."""
        with self._call("ensure_run"):
            run_id = run.run_id or f"memory-{run.key}"
            made = self.runs.setdefault(run_id, MemoryRun(run, tags={**run.tags, KEY_TAG: run.key}))
            hashes = {
                name: {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
                for name, content in made.files.items()
                if name != MANIFEST
            }
            return RemoteRun(run_id, hashes)

    def write_batch(self, run_id: str, batch: Batch) -> None:
        """See :class:`Sink`."""
        with self._call("write_batch"):
            names = {point.name for point in batch.points} | batch.params.keys() | batch.tags.keys()
            if refused := names & self.refuse:
                raise PermanentError(f"refused: {sorted(refused)}")
            run = self.runs[run_id]
            # a NaN is unequal to itself, its text is not
            known = {(point.name, repr(point.value), point.timestamp_ms, point.step) for point in run.points}
            for point in batch.points:
                if (point.name, repr(point.value), point.timestamp_ms, point.step) not in known:
                    run.points.add(point)
            run.tags |= batch.tags
            for name, (text, timestamp_ms) in batch.params.items():
                if run.params.setdefault(name, text) != text:
                    run.tags |= changed_param(name, run.params[name], text, timestamp_ms)

    def upload(self, run_id: str, path: Path, destination: str, *, same_as: str = "") -> None:
        """See :class:`Sink`."""
        with self._call(f"upload {destination}" + (f" as {same_as}" if same_as else "")):
            files = self.runs[run_id].files
            files[destination] = files[same_as] if same_as else path.read_bytes()

    def set_status(self, run_id: str, status: str, end_ms: int) -> None:
        """See :class:`Sink`."""
        with self._call(f"set_status {status}"):
            run = self.runs[run_id]
            run.status, run.end_ms = status, end_ms

    def close(self) -> None:
        """See :class:`Sink`."""
        self.closed = True

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        self.calls.append(name)
        if self.failures:
            raise self.failures.pop(0)
        yield
