"""How fast a journal drains beside bare calls, in how much memory, and a large file beside bare boto3."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from heimdall.settings import Settings
from heimdall.tracking.courier import Courier, start_courier
from heimdall.tracking.cursor import Cursor, is_delivered
from heimdall.tracking.delivery import Delivery
from heimdall.tracking.journal import JournalWriter
from heimdall.tracking.locks import holder
from heimdall.tracking.mlflow_sink import MLflowSink, make_client

pytestmark = pytest.mark.benchmark
GIB = os.environ.get("HEIMDALL_BENCH_GIB", "")
POINTS = os.environ.get("HEIMDALL_BENCH_POINTS", "")


def journal(folder: Path, calls: int, files: tuple[Path, ...] = ()) -> Path:
    def problem(error: OSError) -> None:
        raise error

    made = JournalWriter(folder, {"run_key": folder.name, "experiment": "bench"}, on_problem=problem)
    for step in range(calls):
        made.append_metrics({f"train/metric_{n}": step * 0.123456789 + n for n in range(5)}, step)
    for file in files:
        made.stage(file, f"files/{file.name}")
    made.append("e", "FINISHED", "")
    made.close()
    return folder


@pytest.fixture
def settings(mlflow_server: Any, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in {**s3.environment(), "MLFLOW_TRACKING_URI": mlflow_server.url}.items():
        monkeypatch.setenv(name, value)
    return Settings()


@pytest.mark.timeout(900)
def test_drain_rate_beside_bare_batches(
    settings: Settings, tmp_path: Path, full_bench: bool, bench_table: Callable[..., Any]
) -> None:
    from mlflow.entities import Metric

    client = make_client(settings)
    experiment = client.create_experiment(f"bare-{tmp_path.name}")
    batches = 40 if full_bench else 4
    seconds: dict[str, list[float]] = {"bare": [], "courier": []}
    for turn in range(2 if full_bench else 1):
        run_id = client.create_run(experiment).info.run_id
        begin = time.perf_counter()
        for batch in range(batches):
            steps = range(batch * 200, batch * 200 + 200)
            points = [Metric(f"train/metric_{n}", s * 0.1234 + n, 10**12 + s, s) for s in steps for n in range(5)]
            client.log_batch(run_id, metrics=points)
        seconds["bare"].append(time.perf_counter() - begin)
        folder = journal(tmp_path / f"hd-drain-{turn}", batches * 200)
        begin = time.perf_counter()
        work = Delivery(folder, MLflowSink(settings), place=settings.tracking_place, experiment="bench")
        assert Courier(work, lambda idle: idle > 60).run()
        seconds["courier"].append(time.perf_counter() - begin)
    table = bench_table(
        "Drain rate", ["way", "points/s", "ratio"], "1000 points a call, MLflow on PostgreSQL; run and status included."
    )
    bare, ours = min(seconds["bare"]), min(seconds["courier"])
    table.row("bare log_batch", 1000 * batches / bare, 1.0)
    table.row("courier", 1000 * batches / ours, bare / ours)


@pytest.mark.timeout(1800)
def test_memory_of_the_courier_does_not_grow_with_what_waits(
    settings: Settings, full_bench: bool, bench_table: Callable[..., Any]
) -> None:
    most = int(POINTS or (100_000 if full_bench else 10_000))
    note = "What a courier holds at most while it delivers a journal of so many points, five a call."
    table = bench_table("Memory of the courier", ["points", "largest, MiB", "seconds"], note)
    for points in (most // 10, most):
        folder = journal(settings.journal_dir / f"hd-{points}", points // 5)
        begin = time.perf_counter()
        start_courier(folder, settings)
        largest = 0
        while not is_delivered(folder):
            pid = holder(folder / "courier.lock")
            with contextlib.suppress(psutil.NoSuchProcess):
                largest = max(largest, psutil.Process(pid).memory_info().rss if pid else 0)
            assert time.perf_counter() - begin < 1700, Cursor.load(folder)
            time.sleep(0.1)
        table.row(points, largest / 2**20, time.perf_counter() - begin)
        assert largest < 250 * 2**20


@pytest.mark.timeout(900)
def test_a_large_file_beside_bare_boto3(
    settings: Settings, s3: Any, tmp_path: Path, full_bench: bool, bench_table: Callable[..., Any]
) -> None:
    size = int(float(GIB or ("1" if full_bench else "0.03")) * 1e9)
    file = tmp_path / "checkpoint.bin"
    seconds: dict[str, list[float]] = {"bare": [], "courier": []}
    bucket = s3.make_bucket()
    for turn in range(2 if full_bench else 1):
        block = os.urandom(1 << 20)  # other bytes each time: what is known is not sent again
        with file.open("wb") as out:
            for _ in range(size >> 20):
                out.write(block)
        folder = journal(tmp_path / f"hd-file-{turn}", 1, (file,))
        work = Delivery(folder, MLflowSink(settings), place=settings.tracking_place, experiment="bench")
        work.deliver_records()
        begin = time.perf_counter()
        work.files.deliver_next()
        seconds["courier"].append(time.perf_counter() - begin)
        client = s3.client()
        begin = time.perf_counter()
        client.upload_file(str(file), bucket, f"bare-{turn}")
        seconds["bare"].append(time.perf_counter() - begin)
        assert Courier(work, lambda idle: idle > 60).run()
    bare, ours = min(seconds["bare"]), min(seconds["courier"])
    table = bench_table(
        "A large file",
        ["way", "MB/s", "time ratio"],
        f"{size / 1e9:.2f} GB to S3 on the same machine, sha256 included.",
    )
    table.row("bare boto3 upload_file", size / 1e6 / bare, 1.0)
    table.row("courier", size / 1e6 / ours, ours / bare)
