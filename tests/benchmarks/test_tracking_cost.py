"""What a metric call costs the training step, side by side in one run: Heimdall, Lightning's logger, mlflow's queue.

wandb is not among them: it is no dependency of this project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.benchmark
ROW = Path(__file__).with_name("tracking_cost_row.py")


@pytest.mark.timeout(900)
def test_cost_of_a_metric_call(
    mlflow_server: Any,
    make_database: Callable[[], str],
    s3: Any,
    tmp_path: Path,
    full_bench: bool,
    bench_table: Callable[..., Any],
) -> None:
    import proxy

    hanging = proxy.Proxy(mlflow_server.port)
    hanging.set("hang")
    steps = 2000 if full_bench else 100
    rows = [
        ("no logger", "none", "", steps),
        ("Heimdall, server up", "heimdall", mlflow_server.url, steps),
        ("Heimdall, server down", "heimdall", "http://127.0.0.1:9", steps),
        ("Heimdall, server hanging", "heimdall", hanging.url, steps),
        ("mlflow asynchronous, HTTP", "asynchronous", mlflow_server.url, steps // 4),
        ("Lightning MLFlowLogger, HTTP", "lightning", mlflow_server.url, steps // 10),
        ("Lightning MLFlowLogger, PostgreSQL", "lightning", make_database(), steps // 10),
    ]
    note = "A step of about 2 ms with a call of 5 metrics each; the ratio is to the same step without, in turns."
    table = bench_table("Cost of a metric call", ["way", "call, µs", "99 %, µs", "step, ms", "ratio", "end, s"], note)
    found = {}
    for name, way, uri, count in rows:
        environment = {
            **os.environ,
            **s3.environment(),
            "MLFLOW_TRACKING_URI": uri.replace("postgresql://", "postgresql+psycopg2://"),
            "HEIMDALL_HOME": str(tmp_path / "home"),
            "HEIMDALL_START_WAIT_SECONDS": "10",
            "HEIMDALL_END_WAIT_SECONDS": "5",
            "HEIMDALL_COURIER_LINGER_SECONDS": "5",
            "OPENBLAS_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, str(ROW), way, str(max(50, count))],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        found[name] = row = json.loads(done.stdout.splitlines()[-1])
        table.row(name, row["call_us"], row["call_99_us"], row["step_ms"], row["ratio"], row["end_seconds"])
    hanging.stop()
    ours = [row for name, row in found.items() if name.startswith("Heimdall")]
    others = [row for name, row in found.items() if "MLFlowLogger" in name]
    # an order of magnitude, whatever else the machine does; the figures themselves are for the page
    assert max(row["call_us"] for row in ours) < min(row["call_us"] for row in others) / 10


@pytest.mark.timeout(600)
def test_seconds_until_a_point_is_visible(
    mlflow_server: Any, s3: Any, monkeypatch: pytest.MonkeyPatch, full_bench: bool, bench_table: Callable[..., Any]
) -> None:
    from heimdall.settings import Settings
    from heimdall.tracking.tracker import MLflowTracker

    for name, value in {**s3.environment(), "MLFLOW_TRACKING_URI": mlflow_server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEIMDALL_START_WAIT_SECONDS", "60")
    tracker = MLflowTracker(Settings())
    run_id = tracker.start_run("visible")
    delays = []
    for step in range(20 if full_bench else 3):
        logged = time.perf_counter()
        tracker.log_metrics({"seen": step}, step=step)
        while len(tracker.client.get_metric_history(run_id, "seen")) <= step:
            time.sleep(0.01)
        delays.append(time.perf_counter() - logged)
        time.sleep(0.13 * (step % 7))
    tracker.end_run()
    delays.sort()
    table = bench_table(
        "Until a point is visible", ["", "seconds"], "From the call until MLflow's API answers with it."
    )
    table.row("median", delays[len(delays) // 2])
    table.row("longest", delays[-1])
    assert len(delays) >= 3
