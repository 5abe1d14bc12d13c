"""A journal to deliver, by a courier that does not pause between tries."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "hd-test"


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heimdall.tracking.courier.pause_seconds", lambda attempts: 0.001)
