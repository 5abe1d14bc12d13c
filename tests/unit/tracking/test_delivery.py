"""Delivery of one journal, to a sink in memory that fails as it is told."""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heimdall.errors import ConfigError
from heimdall.tracking import delivery as deliveries
from heimdall.tracking.courier import Courier
from heimdall.tracking.cursor import Cursor, is_delivered
from heimdall.tracking.delivery import Delivery
from heimdall.tracking.journal import JournalWriter
from heimdall.tracking.limits import PARAM_CHARACTERS
from heimdall.tracking.records import FORMAT
from heimdall.tracking.sinks import MANIFEST, MemoryRun, MemorySink, PermanentError, TransientError

PLACE = "memory://"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "hd-test"


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


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heimdall.tracking.courier.pause_seconds", lambda attempts: 0.001)


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


def test_long_params_go_whole_into_an_artifact(folder: Path) -> None:
    text = "ä" * (PARAM_CHARACTERS + 1)
    made = write(folder)
    made.append("p", {"config": text, "nul": "a\x00b", "fits": "x" * PARAM_CHARACTERS})
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink()
    assert deliver(folder, sink)
    run = only(sink)
    assert run.files["heimdall/params/config.txt"].decode() == text
    assert run.files["heimdall/params/nul.txt"] == b"a\x00b"
    assert run.params["config"].startswith("sha256:")
    assert "heimdall/params/config.txt" in run.params["config"]
    assert run.params["fits"] == "x" * PARAM_CHARACTERS


def test_refused_names_are_mapped_and_the_mapping_is_kept(folder: Path) -> None:
    made = write(folder)
    made.append_metrics({"a+b": 1.0, "a*b": 2.0}, 0)
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink()
    assert deliver(folder, sink)
    run = only(sink)
    mapped = {name.removeprefix("heimdall.name."): text for name, text in run.tags.items() if "heimdall.name." in name}
    assert sorted(mapped.values()) == ["a*b", "a+b"]
    assert {mapped[point.name]: point.value for point in run.points} == {"a+b": 1.0, "a*b": 2.0}


def test_identical_content_is_sent_once(folder: Path, tmp_path: Path) -> None:
    made = write(folder)
    for name in ("best.ckpt", "last.ckpt", "last.ckpt"):
        (tmp_path / name).write_bytes(b"w" * 1000)
        made.stage(tmp_path / name, name)
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink()
    assert deliver(folder, sink)
    uploads = [call for call in sink.calls if call.startswith("upload") and MANIFEST not in call]
    assert uploads == ["upload best.ckpt", "upload last.ckpt as best.ckpt"]
    assert set(only(sink).files) == {"best.ckpt", "last.ckpt", MANIFEST}


def test_of_versions_that_wait_only_the_newest_is_sent(folder: Path, tmp_path: Path) -> None:
    made = write(folder)
    for version in range(4):
        (tmp_path / "last.ckpt").write_bytes(b"version %d" % version)
        made.stage(tmp_path / "last.ckpt", "last.ckpt")
    made.append("e", "FINISHED", "")
    made.close()
    sink = MemorySink()
    assert deliver(folder, sink)
    assert only(sink).files["last.ckpt"] == b"version 3"
    assert sink.calls.count("upload last.ckpt") == 1


def test_a_refused_file_is_kept_and_tried_again_next_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"big")
    made = write(folder)
    made.stage(tmp_path / "big.bin", "big.bin")
    made.append("e", "FINISHED", "")
    made.close()

    class Narrow(MemorySink):
        def upload(self, run_id: str, path: Path, destination: str, *, same_as: str = "") -> None:
            if destination == "big.bin":
                raise PermanentError("too large")
            super().upload(run_id, path, destination, same_as=same_as)

    narrow = Narrow()
    assert deliver(folder, narrow)
    cursor = Cursor.load(folder)
    assert cursor.refusals == ["big.bin: too large"]
    assert (folder / "staged" / cursor.set_aside[0]["staged"]).read_bytes() == b"big"
    wide = MemorySink(runs=narrow.runs)
    assert deliver(folder, wide)
    assert only(wide).files["big.bin"] == b"big"


def test_metrics_do_not_wait_behind_a_large_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"big")
    made = write(folder)
    made.stage(tmp_path / "big.bin", "big.bin")
    made.append_metrics({"loss": 1.0}, 0)

    class Slow(MemorySink):
        def upload(self, run_id: str, path: Path, destination: str, *, same_as: str = "") -> None:
            raise TransientError("the object store is down")

    sink = Slow()
    assert not deliver(folder, sink, give_up=lambda idle: idle > 0.5)
    assert values(only(sink)) == [1.0]
    made.close()


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
