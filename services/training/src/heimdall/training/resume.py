"""Finding the run to continue, and the last of its checkpoints that is whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heimdall.errors import ConfigError
from heimdall.training.config import RunConfig, outputs_root
from heimdall.training.folder import RunFolder, read_record


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from, and the damaged ones that were passed over."""

    path: Path
    state: dict[str, Any]  # what Checkpoints keeps in it
    epoch: int
    step: int
    passed_over: tuple[Path, ...] = ()


def find_run(config: RunConfig, task: str) -> RunFolder | None:
    """The run that ``--resume`` means; None where a new one is to start.

    Raises :class:`~heimdall.errors.ConfigError` if there is no such run.
    """
    if not config.resume:
        return None
    if config.resume == "auto":
        newest = max(_runs(config, task), key=lambda run: run.record.started, default=None)
        return newest if newest is not None and newest.record.status != "finished" else None
    path = Path(config.resume).expanduser().absolute()
    if path.is_dir():
        path = path.parent if path.name == "checkpoints" else path
        record = read_record(path)
        if record is None:
            raise ConfigError(f"{path} is not the output folder of a run.", mend="It has no run.json that can be read.")
        return _checked(RunFolder(path, record), task)
    for run in _runs(config, task):
        if config.resume in {run.record.run_id, run.record.run_key}:
            return _checked(run, task)
    raise ConfigError(f"There is no run {config.resume!r} here.", mend="Give its output folder, its run id, or auto.")


def last_checkpoint(folder: Path) -> Found | None:
    """The newest checkpoint in ``folder`` that is whole; None where there is none."""
    passed_over: list[Path] = []
    for path in _candidates(folder):
        found = _read(path)
        if found is not None:
            return Found(path, *found, passed_over=tuple(passed_over))
        passed_over.append(path)
    return None


def logged_steps(journal: Path) -> dict[str, int]:
    """The last step of each metric in the journal of a run: what it has of a resumed run need not be logged again."""
    from heimdall.tracking.journal import segments
    from heimdall.tracking.records import Position, Record, read_records

    last: dict[str, int] = {}
    for segment in segments(journal):
        for record in read_records(segment, Position(), ended=True):
            if isinstance(record, Record) and record.kind == "m":
                step, values = record.content
                for name in values:
                    last[name] = max(last.get(name, -1), step)
    return last


def _candidates(folder: Path) -> list[Path]:
    from heimdall.training.checkpoints import BEST_PATTERN, LAST, PREVIOUS

    best = sorted(folder.glob(BEST_PATTERN), key=lambda path: path.name.partition("-step")[2], reverse=True)
    return [path for path in (folder / LAST, folder / PREVIOUS, *best) if path.exists()]


def _read(path: Path) -> tuple[dict[str, Any], int, int] | None:
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


def _runs(config: RunConfig, task: str) -> Iterator[RunFolder]:
    root = outputs_root(task).absolute()
    folders = [config.output_dir.expanduser().absolute()] if config.output_dir else sorted(root.glob("*"))
    for path in folders:
        record = read_record(path)
        if record is not None and record.task == task:
            yield RunFolder(path, record)


def _checked(run: RunFolder, task: str) -> RunFolder:
    if run.record.task != task:
        raise ConfigError(f"{run.path} is a run of the task {run.record.task!r}, not {task!r}.")
    return run
