"""Two processes (ddp over gloo) beside one, with the same global batch: the same curve, how many steps a second?"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import Table, median_ratios

CHILD = Path(__file__).with_name("one_of_several.py")
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # full, short; batch_size is the global one
    "localization": (
        {"backbone": "CONVNEXT_TINY", "batch_size": 8, "epochs": 1, "sample_sessions": 100},
        {"backbone": "COMPACT", "batch_size": 8, "epochs": 1, "sample_sessions": 40},
    ),
    "ptychography": (
        {"batch_size": 16, "epochs": 1, "simulate_patterns": 192, "preview_every": 0},
        {"batch_size": 4, "epochs": 1, "simulate_patterns": 48, "preview_every": 0, "width": 8},
    ),
}


def steps_a_second(name: str, options: dict[str, Any], folder: Path, *, processes: int, threads: int) -> float:
    """What the first of ``processes`` with ``threads`` each measures."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    common = {**os.environ, "OMP_NUM_THREADS": str(threads), **(group if processes > 1 else {})}
    own = {**options, "batch_size": options["batch_size"] // processes}
    output = folder / f"{processes}-{threads}-{len(list(folder.iterdir()))}"
    words = json.dumps([name, own, processes, str(output), str(folder / "home")])
    running = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        command = [sys.executable, str(CHILD), words]
        running.append(subprocess.Popen(command, env={**common, **place}, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=300)[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    return next(float(line.split()[1]) for line in said[0].splitlines() if line.startswith("RATE"))


@pytest.mark.benchmark
@pytest.mark.parametrize("name", list(TASKS))
def test_two_processes_beside_one(
    name: str, tmp_path: Path, bench_table: Callable[..., Table], full_bench: bool
) -> None:
    if not full_bench and name != "localization":
        pytest.skip("one task shows that it works")
    options = TASKS[name][0 if full_bench else 1]
    cores = len(os.sched_getaffinity(0))

    def workload(processes: int, threads: int) -> Callable[[], float]:
        return lambda: steps_a_second(name, options, tmp_path, processes=processes, threads=threads)

    one = "1 process, 1 thread"
    workloads = {one: workload(1, 1), "2 processes (ddp, gloo), 1 thread each": workload(2, 1)}
    if full_bench and cores > 1:
        workloads["1 process, 2 threads"] = workload(1, 2)
    found = median_ratios(workloads, base=one, rounds=2 if full_bench else 1)
    said = ", ".join(f"{key} {value}" for key, value in options.items() if key != "epochs")
    table = bench_table(
        f"Two processes beside one: {name}",
        ["processes", "steps/s", "ratio"],
        f"{said}; the batch is the global one, half of it in each of two processes. {cores} cores.",
    )
    for kind, (rate, ratio) in found.items():
        table.row(kind, rate, ratio)
        assert rate > 0
