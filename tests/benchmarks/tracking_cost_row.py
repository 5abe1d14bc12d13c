"""One way to log, in a process of its own: ``tracking_cost_row.py WAY STEPS`` prints its times as JSON.

A step is a matrix product of about 2 ms and the metrics made from it. Blocks of steps with and without a call of the
logger take turns, and take turns in being first, so that what else happens on the machine touches both alike.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from io import FileIO
from typing import Any

import numpy as np

BLOCK = 10
STEP_SECONDS = 0.002
Log = Callable[[dict[str, float], int], Any]


def heimdall() -> tuple[Log, Callable[[], Any]]:
    from heimdall.tracking.tracker import initialize_mlflow

    tracker = initialize_mlflow()
    tracker.start_run()
    return tracker.log_metrics, tracker.end_run


def lightning_logger() -> tuple[Log, Callable[[], Any]]:
    import os

    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger("bench", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    return logger.log_metrics, lambda: logger.finalize("success")


def mlflow_asynchronous() -> tuple[Log, Callable[[], Any]]:
    import mlflow

    mlflow.set_experiment("bench")
    mlflow.start_run()

    def log(metrics: dict[str, float], step: int) -> None:
        mlflow.log_metrics(metrics, step=step, synchronous=False)

    return log, lambda: None


def wandb_offline() -> tuple[Log, Callable[[], Any]]:
    import os
    from tempfile import mkdtemp

    place = mkdtemp()  # below the test's own folder
    for kind in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        os.environ[f"WANDB_{kind}"] = place
    os.environ |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    import wandb

    options = wandb.Settings(x_disable_stats=True, disable_git=True, save_code=False, console="off")
    run = wandb.init(project="bench", settings=options)

    def log(metrics: dict[str, float], step: int) -> None:
        run.log(metrics, step=step)

    return log, run.finish


def bare_write() -> tuple[Log, Callable[[], Any]]:
    file = _file()
    return lambda metrics, step: file.write(b"x" * 200), file.close


def json_write() -> tuple[Log, Callable[[], Any]]:
    file = _file()
    return lambda metrics, step: file.write(json.dumps([step, time.time(), metrics]).encode()), file.close


def _file() -> FileIO:
    from tempfile import mkdtemp

    return FileIO(f"{mkdtemp()}/metrics", "a")


def sqlite_insert() -> tuple[Log, Callable[[], Any]]:
    import sqlite3
    from tempfile import mkdtemp

    table = sqlite3.connect(f"{mkdtemp()}/metrics.db", isolation_level=None)
    table.execute("PRAGMA journal_mode = WAL")
    table.execute("PRAGMA synchronous = OFF")  # survives a kill, as a bare write does
    table.execute("CREATE TABLE metrics (step INTEGER, time REAL, body TEXT)")

    def log(metrics: dict[str, float], step: int) -> None:
        table.execute("INSERT INTO metrics VALUES (?, ?, ?)", (step, time.time(), json.dumps(metrics)))

    return log, table.close


def none() -> tuple[Log, Callable[[], Any]]:
    return lambda metrics, step: None, lambda: None


WAYS = {
    "heimdall": heimdall,
    "lightning": lightning_logger,
    "asynchronous": mlflow_asynchronous,
    "wandb": wandb_offline,
    "write": bare_write,
    "json": json_write,
    "sqlite": sqlite_insert,
    "none": none,
}


def main(way: str, steps: int) -> None:
    size = 64
    matrix = np.random.default_rng(0).normal(size=(size, size))

    def product_seconds(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            matrix @ matrix
        return time.perf_counter() - begin

    product_seconds(200)
    products = max(1, round(STEP_SECONDS / (min(product_seconds(200) for _ in range(5)) / 200)))
    log, end = WAYS[way]()
    log({f"train/metric_{n}": 0.0 for n in range(5)}, 0)
    time.sleep(1.0)

    def block(first: int, log: Log) -> tuple[float, list[float]]:
        """Seconds a step, and of each call. The metrics are made in either case: only the logger differs."""
        calls = []
        begin = time.perf_counter()
        for step in range(first, first + BLOCK):
            product_seconds(products)
            metrics = {f"train/metric_{n}": step * 0.123456789 + n for n in range(5)}
            called = time.perf_counter()
            log(metrics, step)
            calls.append(time.perf_counter() - called)
        return (time.perf_counter() - begin) / BLOCK, calls

    nothing, _ = none()
    calls, with_log, without = [], [], []
    for number in range(max(1, steps // BLOCK)):
        for logs in (True, False) if number % 2 else (False, True):  # in turns, and in turns the first
            seconds, times = block(1 + number * BLOCK, log if logs else nothing)
            (with_log if logs else without).append(seconds)
            calls += times if logs else []
    begin = time.perf_counter()
    end()
    found = {"calls_us": [1e6 * seconds for seconds in calls], "with_ms": [1e3 * s for s in with_log]}
    ratios = [a / b for a, b in zip(with_log, without, strict=True)]
    print(json.dumps({**found, "ratios": ratios, "end_seconds": [time.perf_counter() - begin]}), flush=True)


if __name__ == "__main__":
    import os

    main(sys.argv[1], int(sys.argv[2]))
    os._exit(0)  # mlflow's own queue would otherwise be waited for
