"""The journal's writer and the files it stages."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from heimdall.errors import OutputError, UsageError
from heimdall.tracking import journal, staging
from heimdall.tracking.locks import ProcessLock, is_locked
from heimdall.tracking.records import Position, Record, read_records

START = {"run_key": "hd-test", "run_name": "test", "experiment": "tests", "tags": {}}
HOUR_NS = 3_600_000_000_000


def fail(error: OSError) -> None:
    raise AssertionError(f"no problem was expected: {error}")


def writer(folder: Path, **options: Any) -> journal.JournalWriter:
    return journal.JournalWriter(folder, START, on_problem=options.pop("on_problem", fail), **options)


def read(path: Path) -> list[Record]:
    return [item for item in read_records(path, Position(), ended=True) if isinstance(item, Record)]


def test_what_append_returned_from_is_in_the_file(tmp_path: Path) -> None:
    made = writer(tmp_path / "run")
    made.append_metrics({"loss": 1.0}, 4)
    header, twin, record = read(made.segment)
    assert header.content == twin.content
    assert (record.kind, record.content) == ("m", [4, {"loss": 1.0}])
    made.close()


def test_no_two_points_of_one_step_have_the_same_time(tmp_path: Path) -> None:
    made = writer(tmp_path / "run")
    for _ in range(2000):
        made.append_metrics({"loss": 0.5}, 0)
        made.append_metrics({"loss": 0.5}, 1)
    points = [(r.content[0], r.timestamp_ms) for r in read(made.segment) if r.kind == "m"]
    assert len(set(points)) == len(points) == 4000
    made.close()


def test_a_clock_set_back_makes_no_two_points_alike(tmp_path: Path) -> None:
    first = writer(tmp_path / "run")
    for step in range(50):
        first.append_metrics({"loss": 0.5}, step)
    first.close()
    again = writer(tmp_path / "run", wall_clock=lambda: first._last_ms * 1_000_000 - HOUR_NS)
    for step in range(50):
        again.append_metrics({"loss": 0.5}, step)
    again.close()
    times = [r.timestamp_ms for segment in journal.segments(tmp_path / "run") for r in read(segment)]
    assert times == sorted(times)
    points = [
        (r.content[0], r.timestamp_ms) for s in journal.segments(tmp_path / "run") for r in read(s) if r.kind == "m"
    ]
    assert len(set(points)) == 100


def test_threads_lose_nothing(tmp_path: Path) -> None:
    made = writer(tmp_path / "run")

    def log(name: str) -> None:
        for step in range(500):
            made.append_metrics({name: step}, step)

    threads = [threading.Thread(target=log, args=(f"m{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = read(made.segment)
    assert [r.number for r in records] == list(range(1, 2003))
    assert len({(next(iter(r.content[1])), r.content[0]) for r in records if r.kind == "m"}) == 2000
    made.close()


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    made = writer(tmp_path / "run")
    assert journal.is_written(tmp_path / "run")
    with pytest.raises(UsageError, match="another process"):
        writer(tmp_path / "run")
    made.close()
    assert not journal.is_written(tmp_path / "run")
    writer(tmp_path / "run").close()
    assert len(journal.segments(tmp_path / "run")) == 2


def test_a_lock_dies_with_its_process_though_its_children_live(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from pathlib import Path; from heimdall.tracking.locks import ProcessLock\n"
        f"lock = ProcessLock(Path({str(tmp_path / 'lock')!r})); assert lock.acquire()\n"
        "child = os.fork()\n"
        "if not child: time.sleep(60)\n"
        "print(child, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert is_locked(tmp_path / "lock")
        assert not ProcessLock(tmp_path / "lock").acquire()
        process.kill()
        process.wait()
        assert not is_locked(tmp_path / "lock")
    finally:
        os.kill(child, 9)
        process.stdout.close()


def test_large_files_are_linked_and_outlive_their_rotation(tmp_path: Path) -> None:
    big, small = tmp_path / "last.ckpt", tmp_path / "note.txt"
    big.write_bytes(b"x" * staging.COPY_BELOW_BYTES)
    small.write_text("before")
    made = writer(tmp_path / "run")
    made.append("a", *staging.stage(made.folder, big, "checkpoints/last.ckpt"))
    made.stage(small, "note.txt")
    staged = [made.folder / "staged" / r.content[0] for r in read(made.segment) if r.kind == "a"]
    assert staged[0].stat().st_ino == big.stat().st_ino
    big.unlink()
    small.write_text("after")
    assert staged[0].stat().st_size == staging.COPY_BELOW_BYTES
    assert staged[1].read_text() == "before", "a small file is kept as it was"
    made.close()


def test_a_file_on_another_file_system_is_copied(tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    big = shared_memory / f"heimdall-{os.getpid()}.ckpt"
    big.write_bytes(b"y" * staging.COPY_BELOW_BYTES)
    try:
        staged, *_ = staging.stage(tmp_path, big, "big.ckpt")
    finally:
        big.unlink()
    assert (tmp_path / "staged" / staged).read_bytes() == b"y" * staging.COPY_BELOW_BYTES


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        writer(tmp_path / "file" / "run")


def test_records_of_a_full_disk_wait_in_memory_and_nothing_is_torn(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for the full disk: write(2) fails alike, after writing a part."""
    script = f"""
import resource, signal
from pathlib import Path
from heimdall.tracking.journal import JournalWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
problems = []
made = JournalWriter(Path({str(tmp_path / "run")!r}), {{"run_key": "hd-test"}}, on_problem=problems.append)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (made._size + 5000, hard))
for step in range(300):
    made.append_metrics({{"loss": step / 3}}, step)
assert problems and made.unwritten > 100, made.unwritten
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
made.close()
assert made.lost == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    items = list(read_records(journal.segments(tmp_path / "run")[0], Position(), ended=True))
    assert [item.content[0] for item in items if isinstance(item, Record) and item.kind == "m"] == list(range(300))
