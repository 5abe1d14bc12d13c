"""Finding the run to continue, and what it has logged already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from heimdall.errors import ConfigError
from heimdall.settings import Settings
from heimdall.training.config import RunConfig, outputs_root
from heimdall.training.elsewhere import fetch_run
from heimdall.training.folder import RunFolder, read_record


def find_run(config: RunConfig, task: str, settings: Settings) -> RunFolder | None:
    """The run that ``--resume`` means; None where a new one is to start.

    A run id whose folder is not here is fetched from the run's artifacts.

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
    path = config.output_folder(task) if config.output_dir else outputs_root(task).absolute() / config.resume
    fetched = fetch_run(config.resume, path, settings)
    if fetched is not None:
        return _checked(fetched, task)
    raise ConfigError(f"There is no run {config.resume!r} here.", mend="Give its output folder, its run id, or auto.")


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
