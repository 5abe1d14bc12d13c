"""Small simulated scans, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from heimdall.tasks.ptychography.config import SimulationOptions
from heimdall.tasks.ptychography.scan import Scan, write_scan
from heimdall.tasks.ptychography.simulate import simulate

PATTERNS = 49


@pytest.fixture(scope="session")
def scan() -> Scan:
    """49 patterns of 64 x 64 pixels with their truth."""
    return simulate(SimulationOptions(patterns=PATTERNS, seed=5))


@pytest.fixture(scope="session")
def other_scan() -> Scan:
    """Another object, the same probe."""
    return simulate(SimulationOptions(patterns=PATTERNS, seed=5), stream=1)


@pytest.fixture(scope="session")
def scan_file(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:func:`scan` as a file."""
    return write_scan(tmp_path_factory.mktemp("scan") / "train.npz", scan)


@pytest.fixture(scope="session")
def other_file(other_scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:func:`other_scan` as a file."""
    return write_scan(tmp_path_factory.mktemp("scan") / "test.npz", other_scan)
