"""Journals written and delivered to a sink in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from heimdall.tracking.courier import Courier
from heimdall.tracking.delivery import Delivery
from heimdall.tracking.journal import JournalWriter
from heimdall.tracking.sinks import MemoryRun, MemorySink

PLACE = "memory://"


def write(folder: Path, **more: Any) -> JournalWriter:
    def problem(error: OSError) -> None:
        raise error

    start = {"run_key": folder.name, "run_name": "test", "experiment": "tests", "tags": {"who": "me"}, **more}
    return JournalWriter(folder, start, on_problem=problem)


def deliver(
    folder: Path, sink: MemorySink, *, place: str = PLACE, give_up: Callable[[float], bool] | None = None
) -> bool:
    work = Delivery(folder, sink, place=place, experiment="tests")
    return Courier(work, give_up or (lambda idle: idle > 5)).run()


def only(sink: MemorySink) -> MemoryRun:
    assert len(sink.runs) == 1
    return next(iter(sink.runs.values()))


def values(run: MemoryRun, name: str = "loss") -> list[float]:
    return [point.value for point in sorted(run.points, key=lambda p: (p.step, p.timestamp_ms)) if point.name == name]
