"""Register what a run left behind: its best checkpoint, its configuration, its pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from heimdall.errors import DataError
from heimdall.registry.client import asking, connect
from heimdall.registry.register import RegisteredModel, register
from heimdall.registry.store import TASK_TAG
from heimdall.tasks.base import Report, Task, TaskConfig, find_task

if TYPE_CHECKING:
    from heimdall.settings import Settings
    from heimdall.tracking.queries import RunInfo

FOLDER_TAG = "heimdall.output_dir"
CHECKPOINTS, REPORT = "checkpoints", "report"
OURS = "heimdall"  # key of a checkpoint under which the training keeps the names of the best ones
PICTURES = (".png", ".jpg", ".jpeg")
FINAL_METRICS = re.compile(r"^(test|report|val)/|^[^/]*_val_")


def register_run(
    run: str,
    settings: Settings,
    *,
    metric: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    description: str = "",
) -> RegisteredModel:
    """Register the best checkpoint of ``run`` (id, key, or "best" by ``metric``); the same version again and again.

    Raises :class:`DataError` where the run has no checkpoint or its data is gone, and what
    :func:`heimdall.registry.register.register` raises.
    """
    info = find_run(run, settings, metric, mode)
    task = task_of(info)
    with TemporaryDirectory(prefix="heimdall-run-") as temporary:
        folder = Path(temporary)
        checkpoint = best_checkpoint(info, settings, folder / CHECKPOINTS)
        report = report_of(info, settings, folder / REPORT)
        data = task.datamodule(task.prepare(config_of(task, info.params), settings.cache_dir))
        return register(
            task, data, report, run_id=info.run_id, checkpoint=checkpoint, settings=settings, description=description
        )


def find_run(run: str, settings: Settings, metric: str, mode: Literal["min", "max"]) -> RunInfo:
    """The run with this id or key, or the best one by ``metric``."""
    from heimdall.tracking.queries import RunQueries

    queries = RunQueries(settings)
    if run != "best":
        return queries.get_run_info(run)
    found = queries.get_best_run(metric, mode)
    if found is None:
        raise DataError(
            f"No finished run in {settings.mlflow_experiment_name} has the metric {metric!r}.",
            mend="heimdall runs list shows the runs; --metric names another metric.",
        )
    return found


def task_of(info: RunInfo) -> Task[Any]:
    """The task that a run trained. Raises :class:`DataError` where its tags do not say."""
    name = info.tags.get(TASK_TAG)
    if not name:
        raise DataError(f"The run {info.run_id} does not say which task it trained.", mend=f"Set its tag {TASK_TAG}.")
    return find_task(name)


def config_of(task: Task[Any], params: Mapping[str, str]) -> TaskConfig:
    """The task's configuration from the parameters of a run, which are all text."""
    values = {name: _value(params[name]) for name in task.config_model.model_fields if name in params}
    try:
        return task.config_model.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"The run's parameter {place} is not one of the task {task.name!r}: {first['msg']}.") from error


def _value(text: str) -> Any:
    if text in {"None", ""}:
        return None
    if text[0] in "[{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def best_checkpoint(info: RunInfo, settings: Settings, folder: Path) -> Path:
    """The run's best checkpoint: among its artifacts, or in its output folder where that is on this machine."""
    client = connect(settings)
    with asking(settings, f"fetch the checkpoint of {info.run_id}"):
        names = [item.path for item in client.list_artifacts(info.run_id, CHECKPOINTS) if item.path.endswith(".ckpt")]
        if names:
            name = names[0] if len(names) == 1 else _best_of(client, info, names, folder)
            return _fetch(client, info, name, folder)
    local = Path(info.tags.get(FOLDER_TAG, "/nowhere")) / CHECKPOINTS
    if (local / "last.ckpt").is_file():
        best = local / (_best_name(local / "last.ckpt") or "last.ckpt")
        return best if best.is_file() else local / "last.ckpt"
    raise DataError(
        f"The run {info.run_id} has no checkpoint among its artifacts, and its output folder is not on this machine.",
        mend="Deliver it first (heimdall sync), or train with --publish-checkpoints best.",
    )


def _fetch(client: Any, info: RunInfo, name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(client.download_artifacts(info.run_id, name, str(folder)))


def _best_of(client: Any, info: RunInfo, names: list[str], folder: Path) -> str:
    # every checkpoint knows the best ones up to its own time, so the latest one knows them all; a checkpoint that was
    # one of the best is kept under its own name alone, so last.ckpt need not be the latest
    numbered = max((name for name in names if Path(name).name != "last.ckpt"), default=names[0])
    candidates = [name for name in names if name == numbered or Path(name).name == "last.ckpt"]
    fetched = {name: _fetch(client, info, name, folder) for name in candidates}
    latest = max(fetched, key=lambda name: _step(fetched[name]))
    best = _best_name(fetched[latest])
    return next((name for name in names if Path(name).name == best), latest)


def _step(checkpoint: Path) -> int:
    import torch

    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _best_name(checkpoint: Path) -> str | None:
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    ranked = content.get(OURS, {}).get("best", [])
    return str(ranked[0][1]) if ranked else None


def report_of(info: RunInfo, settings: Settings, folder: Path) -> Report:
    """What a run's server still knows of its report: figures and pictures."""
    client = connect(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with asking(settings, f"fetch the pictures of {info.run_id}"):
        names = [item.path for item in client.list_artifacts(info.run_id, REPORT)]
        files = [_fetch(client, info, name, folder) for name in names if name.lower().endswith(PICTURES)]
    metrics = {name: value for name, value in sorted(info.metrics.items()) if FINAL_METRICS.search(name)}
    return Report(metrics=metrics, files=tuple(files))
