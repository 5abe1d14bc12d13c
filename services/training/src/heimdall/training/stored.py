"""The checkpoints in a folder, and the last of them that is whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from, and the damaged ones that were passed over."""

    path: Path
    state: dict[str, Any]  # what Checkpoints keeps in it
    epoch: int
    step: int
    passed_over: tuple[Path, ...] = ()


def last_checkpoint(folder: Path) -> Found | None:
    """The newest checkpoint in ``folder`` that is whole; None where there is none."""
    passed_over: list[Path] = []
    for path in _candidates(folder):
        found = read_checkpoint(path)
        if found is not None:
            return Found(path, *found, passed_over=tuple(passed_over))
        passed_over.append(path)
    return None


def _candidates(folder: Path) -> list[Path]:
    from heimdall.training.checkpoints import BEST_PATTERN, LAST, PREVIOUS

    best = sorted(folder.glob(BEST_PATTERN), key=lambda path: path.name.partition("-step")[2], reverse=True)
    return [path for path in (folder / LAST, folder / PREVIOUS, *best) if path.exists()]


def read_checkpoint(path: Path) -> tuple[dict[str, Any], int, int] | None:
    """Our own state, the epoch and the step of a checkpoint; None where it is not whole or not one of ours."""
    import torch

    from heimdall.training.checkpoints import KEY
    from heimdall.training.writer import is_whole

    if not is_whole(path):
        return None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return stored[KEY], int(stored["epoch"]), int(stored["global_step"])
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is not a checkpoint to go on from
        return None
