"""Heimdall Training: a training service that keeps every number it measured.

The public face. Names are resolved on first use, so that ``import heimdall`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heimdall.settings import Settings as Settings

_PUBLIC = {
    "MLflowTracker": "heimdall.tracking.tracker",
    "Settings": "heimdall.settings",
    "TrainingPipeline": "heimdall.training.pipeline",
    "initialize_mlflow": "heimdall.registry.gatekeeper",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
