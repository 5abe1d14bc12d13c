"""The tracker of runs that nobody tracks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


class NullTracker:
    """Keeps nothing and asks nobody: what ``--logger none`` logs to."""

    run_id = run_key = ""
    undelivered = 0

    def start_run(
        self, run_name: str | None = None, tags: Mapping[str, str] | None = None, *, resume: str | None = None
    ) -> str:
        """See :class:`MLflowTracker`; the empty id."""
        del run_name, tags, resume
        return ""

    def end_run(self, status: EndStatus = "FINISHED") -> None:
        """See :class:`MLflowTracker`."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """See :class:`MLflowTracker`."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See :class:`MLflowTracker`."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """See :class:`MLflowTracker`."""

    def log_artifact(self, path: str | Path, artifact_path: str | None = None) -> None:
        """See :class:`MLflowTracker`."""

    def log_artifacts_dir(self, folder: str | Path, artifact_path: str | None = None) -> None:
        """See :class:`MLflowTracker`."""

    def flush(self, timeout_seconds: float) -> bool:
        """See :class:`MLflowTracker`."""
        del timeout_seconds
        return True
