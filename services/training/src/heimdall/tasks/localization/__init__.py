"""RF source localization: where a transmitter stands, and how sure we are, from the power at several receivers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heimdall.tasks.localization.config import LocalizationConfig
    from heimdall.tasks.localization.task import LocalizationTask

__all__ = ["LocalizationConfig", "LocalizationTask"]


def __getattr__(name: str) -> Any:
    # Lazy, so that a module of this folder can be imported without all the others
    if name == "LocalizationTask":
        from heimdall.tasks.localization.task import LocalizationTask

        return LocalizationTask
    if name == "LocalizationConfig":
        from heimdall.tasks.localization.config import LocalizationConfig

        return LocalizationConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
