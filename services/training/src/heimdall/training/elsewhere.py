"""A run whose folder is on another machine: fetched from its artifacts, so that training can go on here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from heimdall import logs
from heimdall.errors import ConfigError, ServiceError, UsageError
from heimdall.settings import Settings
from heimdall.training.folder import RECORD, RunFolder, read_record

CHECKPOINTS = "checkpoints"


def fetch_run(run: str, path: Path, settings: Settings) -> RunFolder | None:
    """Bring the run ``run`` (id or key) into the folder ``path``; None where the tracking server does not know it.

    Raises :class:`~heimdall.errors.ConfigError` where no server answers, or where the run keeps no checkpoints that can
    be continued.
    """
    from heimdall.tracking.queries import RunQueries, reported

    file = settings.tracking_uri.removeprefix("sqlite:///").split("?")[0]
    if settings.tracking_uri.startswith("sqlite:///") and not Path(file).exists():
        return None  # asked, MLflow would make it
    queries = RunQueries(settings)
    try:
        info = queries.get_run_info(run)
    except UsageError:
        return None
    except ServiceError as error:
        raise ConfigError(f"There is no run {run!r} here, and its server cannot be asked: {error}") from error
    path.mkdir(parents=True, exist_ok=True)
    with FileLock(path / ".fetch.lock"), reported(settings):
        if (record := read_record(path)) is not None:  # another process of this job was faster
            return RunFolder(path, record)
        client = queries.client
        kept = {Path(item.path).name for item in client.list_artifacts(info.run_id, CHECKPOINTS)}
        if not any(not item.is_dir and item.path == RECORD for item in client.list_artifacts(info.run_id)) or not kept:
            raise ConfigError(
                f"The run {run} is not on this machine, and its artifacts do not hold what is needed to go on.",
                mend="Train with --publish-checkpoints all, or give the run's output folder.",
            )
        with tempfile.TemporaryDirectory(dir=path) as scratch:
            client.download_artifacts(info.run_id, RECORD, scratch)
            stored = read_record(Path(scratch))
        if stored is None:
            raise ConfigError(f"The {RECORD} among the artifacts of {run} cannot be read.")
        _fetch_checkpoints(client, info.run_id, kept, path)
        folder = RunFolder(path, stored.model_copy(update={"run_id": info.run_id, "run_key": "", "status": "stopped"}))
        # written last: without it the folder is no run yet, and is fetched again
        folder.update(logged=_last_steps(client, info.run_id, info.metrics))
    return folder


def _fetch_checkpoints(client: Any, run_id: str, kept: set[str], path: Path) -> None:
    """The newest checkpoint, as ``last.ckpt``, and the best ones that it knows of."""
    from heimdall.training.checkpoints import LAST
    from heimdall.training.stored import read_checkpoint
    from heimdall.training.writer import link

    numbered = sorted(kept - {LAST}, key=lambda name: name.partition("-step")[2])
    newest = [name for name in (LAST if LAST in kept else None, numbered[-1] if numbered else None) if name]
    with logs.progress("Fetching the run's checkpoints", len(newest)) as done:
        _download(client, run_id, newest, path)
        done(len(newest))
    found = {name: read for name in newest if (read := read_checkpoint(path / CHECKPOINTS / name)) is not None}
    if not found:
        raise ConfigError("No checkpoint among the run's artifacts is whole.", mend="Give the run's output folder.")
    latest = max(found, key=lambda name: found[name][2])
    _download(client, run_id, [name for _, name in found[latest][0]["best"] if name in kept], path)
    if latest != LAST:
        link(path / CHECKPOINTS / latest, path / CHECKPOINTS / LAST)


def _download(client: Any, run_id: str, names: Iterable[str], path: Path) -> None:
    (path / CHECKPOINTS).mkdir(exist_ok=True)
    for name in names:
        target = path / CHECKPOINTS / name
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=path) as folder:
                Path(client.download_artifacts(run_id, f"{CHECKPOINTS}/{name}", folder)).replace(target)


def _last_steps(client: Any, run_id: str, metrics: Iterable[str]) -> dict[str, int]:
    """The last step of each metric that the server has: those points need not be logged again."""
    return {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in metrics}
