"""Trainers for tests and measurements that are about training alone."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def silent_trainer(**options: Any) -> Trainer:
    """On the CPU unless told otherwise; nothing is logged, saved or shown."""
    silence: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**silence, **options})
