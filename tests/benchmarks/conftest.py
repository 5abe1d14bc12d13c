"""Measurements as ratios, side by side. `make bench` writes docs/performance.md; CI only asks that they run."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# a plain module beside this file, importable as `bench` under --import-mode=importlib
_spec = importlib.util.spec_from_file_location("bench", Path(__file__).with_name("bench.py"))
assert _spec is not None
assert _spec.loader is not None
bench = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("bench", bench)
_spec.loader.exec_module(bench)

# read before any test's own environment is made
FULL = os.environ.get("HEIMDALL_BENCH", "") == "full"
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


@pytest.fixture(scope="session")
def full_bench() -> bool:
    """Whether this is the full measurement (HEIMDALL_BENCH=full), or the short one that shows only that it works."""
    return FULL


@pytest.fixture
def bench_table(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """``bench_table(title, columns, note="")`` returns a table; ``table.row(*cells)`` adds to it.

    It is printed at the end of the test, and kept for the page where the test passed in full mode.
    """
    tables: list[Any] = []

    def make(title: str, columns: list[str], note: str = "") -> Any:
        tables.append(bench.Table(title, columns, note))
        return tables[-1]

    yield make
    where = request.node.nodeid.split("::")[0]
    for table in tables:
        print(f"\n{table.text()}\n")
        if FULL and table.rows and not getattr(request.node, "failed", False):
            bench.write_section(PAGE, table, f"HEIMDALL_BENCH=full pytest -m benchmark {where}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call" and report.failed:
        item.failed = True  # type: ignore[attr-defined]
    return report
