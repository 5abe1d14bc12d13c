"""Delivery of one journal, to a sink in memory that fails as it is told."""

from __future__ import annotations

import math
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from heimdall.errors import ConfigError
from heimdall.tracking import delivery as deliveries
from heimdall.tracking.cursor import Cursor, is_delivered
from heimdall.tracking.records import FORMAT
from heimdall.tracking.sinks import MemorySink, TransientError
from journals import deliver, only, values, write

pytestmark = pytest.mark.usefixtures("without_pauses")


def test_everything_arrives_and_each_call_is_made_once(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    made = write(folder)
    made.append("p", {"lr": "0.1"})
    made.append("t", {"stage": "test"})
    for step in range(100):
        made.append_metrics({"loss": step / 3, "nan": math.nan}, step)
    made.stage(file, "models/model.bin")
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink()
    assert deliver(folder, sink)
    run = only(sink)
    assert values(run) == [step / 3 for step in range(100)]
    assert len(values(run, "nan")) == 100
    assert (run.params, run.status) == ({"lr": "0.1"}, "FINISHED")
    assert run.tags["who"] == "me"
    assert run.files["models/model.bin"] == b"weights"
    assert sink.calls.count("ensure_run") == 1
    assert sink.calls.count("write_batch") == 1
    assert sink.calls.count("upload models/model.bin") == 1
    assert sink.calls[-1] == "set_status FINISHED"
    assert is_delivered(folder)
    assert not any((folder / "staged").iterdir())
    assert deliver(folder, sink), "delivering what is delivered does nothing"
    assert sink.calls.count("write_batch") == 1


def test_a_transient_error_is_tried_again_until_it_works(folder: Path) -> None:
    made = write(folder)
    made.append_metrics({"loss": 1.0}, 0)
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink(failures=[TransientError("down")] * 7)
    assert deliver(folder, sink)
    assert values(only(sink)) == [1.0]
    assert Cursor.load(folder).problem == ""


def test_a_permanent_error_sets_only_the_culprit_aside_and_is_not_retried(folder: Path) -> None:
    made = write(folder)
    for step in range(50):
        made.append_metrics({"loss": step, "poison" if step == 20 else "fine": 1.0}, step)
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink(refuse=frozenset({"poison"}))
    assert deliver(folder, sink)
    cursor = Cursor.load(folder)
    assert len(values(only(sink))) == 50
    assert len(values(only(sink), "fine")) == 49
    assert (cursor.refused, cursor.done) == (1, True)
    assert cursor.refusals[0].startswith("poison: ")
    calls = len(sink.calls)
    assert deliver(folder, sink)
    assert len(sink.calls) - calls <= 1


def test_a_batch_that_an_answering_server_never_takes_does_not_block_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "DOUBTFUL_ATTEMPTS", 3)

    class Stubborn(MemorySink):
        def write_batch(self, run_id: str, batch: Any) -> None:
            if any(point.name == "poison" for point in batch.points):
                raise TransientError("internal error", doubtful=True)
            super().write_batch(run_id, batch)

    made = write(folder)
    made.append_metrics({"loss": 1.0, "poison": 2.0}, 0)
    made.append("e", "FINISHED", "")
    made.close()
    sink = Stubborn()
    assert deliver(folder, sink)
    assert values(only(sink)) == [1.0]
    assert Cursor.load(folder).refusals == ["poison: internal error"]


def test_a_resumed_run_keeps_earlier_metrics_and_old_params(folder: Path) -> None:
    sink = MemorySink()
    for session, rate in enumerate(("0.1", "0.2")):
        made = write(folder)
        made.append("p", {"lr": rate, "same": "x"})
        made.append_metrics({"loss": float(session)}, session)
        made.append("e", "FAILED" if session == 0 else "FINISHED", "")
        made.close()
        assert deliver(folder, sink)
    run = only(sink)
    assert values(run) == [0.0, 1.0]
    assert run.params == {"lr": "0.1", "same": "x"}
    assert run.tags["heimdall.changed_param.lr"].startswith("0.1 -> 0.2")
    assert "heimdall.changed_param.same" not in run.tags
    assert sink.calls.count("set_status RUNNING") == 1
    assert run.status == "FINISHED"


def test_the_same_journal_delivered_twice_changes_nothing(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"a" * 10)
    made = write(folder)
    made.append("p", {"lr": "0.1"})
    for step in range(2500):
        made.append_metrics({"loss": 0.5}, step % 100)
    made.stage(file, "a.bin")
    made.append("e", "KILLED", "")
    made.close()
    copy = tmp_path / "copy" / folder.name
    shutil.copytree(folder, copy)
    sink = MemorySink()
    assert deliver(folder, sink)
    first = only(sink)
    before = (set(first.points), dict(first.params), dict(first.files), first.status)
    assert len(first.points) == 2500
    assert deliver(copy, sink)
    assert (set(first.points), dict(first.params), dict(first.files), first.status) == before
    assert sink.calls.count("upload a.bin") == 1, "what the run holds already is not sent again"


def test_a_trainer_that_died_leaves_a_failed_run(folder: Path) -> None:
    made = write(folder)
    made.append_metrics({"loss": 1.0}, 0)
    made._lock.release()  # as if the process were gone: no end record
    sink = MemorySink()
    assert deliver(folder, sink)
    assert only(sink).status == "FAILED"
    assert "ended without saying so" in only(sink).tags["heimdall.ended"]
    assert only(sink).end_ms > 0


def test_damage_is_reported_on_the_run_and_costs_only_itself(folder: Path) -> None:
    made = write(folder)
    for step in range(10):
        made.append_metrics({"loss": float(step)}, step)
    made.append("e", "FINISHED", "")
    made.close()
    content = made.segment.read_bytes().replace(b'"v",4,', b'"v",7,')
    made.segment.write_bytes(content)
    sink = MemorySink()
    assert deliver(folder, sink)
    assert values(only(sink)) == [float(step) for step in range(10) if step != 4]
    assert only(sink).tags["heimdall.journal_damage"] == "segment-0001.journal: record 7"
    assert Cursor.load(folder).damaged == ["segment-0001.journal: record 7"]


def test_a_run_whose_header_is_lost_is_delivered_under_its_key(folder: Path) -> None:
    made = write(folder)
    made.append_metrics({"loss": 1.0}, 0)
    made.append("e", "FINISHED", "")
    made.close()
    made.segment.write_bytes(made.segment.read_bytes().replace(b'"run_key"', b'"ran_key"'))
    sink = MemorySink()
    assert deliver(folder, sink)
    assert only(sink).start.key == folder.name
    assert values(only(sink)) == [1.0]


def test_a_journal_is_not_delivered_to_another_server_by_accident(folder: Path) -> None:
    made = write(folder)
    made.append("e", "FINISHED", "")
    made.close()
    assert deliver(folder, MemorySink())
    with pytest.raises(ConfigError, match="belongs to memory://, not to elsewhere://"):
        deliver(folder, MemorySink(), place="elsewhere://")


def test_records_of_a_later_version_are_skipped_not_feared(folder: Path) -> None:
    made = write(folder)
    made.append("z", "something new")
    made.append_metrics({"loss": 1.0}, 0)
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink()
    assert deliver(folder, sink)
    assert values(only(sink)) == [1.0]


def test_a_journal_of_a_later_format_is_left_to_its_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("heimdall.tracking.records.FORMAT", FORMAT + 1)
        made = write(folder)
        made.append_metrics({"loss": 1.0}, 0)
        made.append("e", "FINISHED", "")
        made.close()
    with pytest.raises(ConfigError, match=f"later version \\(format {FORMAT + 1}, not {FORMAT}\\)"):
        deliver(folder, MemorySink())
    assert not is_delivered(folder)


def test_the_disk_has_the_journal_soon_though_the_server_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be had here, so the call that outlives one is listened to."""
    answered, forced = threading.Event(), threading.Event()

    class Hanging(MemorySink):
        def ensure_run(self, run: Any) -> Any:
            assert answered.wait(60)
            return super().ensure_run(run)

    made = write(folder)
    made.append_metrics({"loss": 1.0}, 0)
    force = os.fdatasync

    def listened(descriptor: int) -> None:
        force(descriptor)
        if os.fstat(descriptor).st_ino == made.segment.stat().st_ino:
            forced.set()

    monkeypatch.setattr(os, "fdatasync", listened)
    monkeypatch.setattr("heimdall.tracking.courier.SYNC_TO_DISK_SECONDS", 0.01)
    sink = Hanging()
    courier = threading.Thread(target=deliver, args=(folder, sink))
    courier.start()
    try:
        assert forced.wait(30)
        assert not sink.runs
    finally:
        answered.set()
        made.close()
        courier.join()
