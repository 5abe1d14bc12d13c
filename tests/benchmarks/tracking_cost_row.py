"""One row of the cost table, in a process of its own: ``tracking_cost_row.py WAY STEPS`` prints JSON.

A step is a matrix product of about 2 ms. Blocks of steps without and with a metric call each take turns, so that what
else happens on the machine touches both alike.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BLOCK = 50
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


def none() -> tuple[Log, Callable[[], Any]]:
    return lambda metrics, step: None, lambda: None


WAYS = {"heimdall": heimdall, "lightning": lightning_logger, "asynchronous": mlflow_asynchronous, "none": none}


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
    calls, with_log, without = [], [], []
    for block in range(max(1, steps // BLOCK)):
        begin = time.perf_counter()
        for _ in range(BLOCK):
            product_seconds(products)
        without.append((time.perf_counter() - begin) / BLOCK)
        begin = time.perf_counter()
        for step in range(block * BLOCK + 1, (block + 1) * BLOCK + 1):
            product_seconds(products)
            metrics = {f"train/metric_{n}": step * 0.123456789 + n for n in range(5)}
            called = time.perf_counter()
            log(metrics, step)
            calls.append(time.perf_counter() - called)
        with_log.append((time.perf_counter() - begin) / BLOCK)
    calls.sort()
    begin = time.perf_counter()
    end()
    found = {
        "call_us": 1e6 * calls[len(calls) // 2],
        "call_99_us": 1e6 * calls[int(0.99 * len(calls))],
        "step_ms": 1e3 * statistics.median(with_log),
        "ratio": statistics.median(a / b for a, b in zip(with_log, without, strict=True)),
        "end_seconds": time.perf_counter() - begin,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    import os

    main(sys.argv[1], int(sys.argv[2]))
    os._exit(0)  # mlflow's own queue would otherwise be waited for
