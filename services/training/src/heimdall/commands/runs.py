"""``heimdall runs``: list, show, best, compare."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heimdall.commands.tables import print_table

if TYPE_CHECKING:
    from heimdall.tracking.queries import RunInfo, RunQueries

NEWEST = 1000  # runs among which a name is looked for
SUMMARY = "List, show and compare training runs."
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON, for machines.")
METRIC = click.option("--metric", default="val/loss", show_default=True, help="The metric that counts.")
MODE = click.option(
    "--mode", type=click.Choice(["min", "max"]), default="min", show_default=True, help="Whether less is better."
)


@click.group(help=SUMMARY)
def command() -> None:
    """See the module."""


@command.command("list")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many, newest first.")
@METRIC
@AS_JSON
def list_runs(limit: int, metric: str, as_json: bool) -> None:
    """The newest runs of the experiment."""
    from heimdall.settings import Settings
    from heimdall.tracking.queries import RunQueries

    settings = Settings()
    runs = RunQueries(settings).list_runs(limit)
    if as_json:
        click.echo(json.dumps([_as_dict(run) for run in runs], indent=1))
    elif not runs:
        click.echo(f"No run in {settings.mlflow_experiment_name} at {settings.tracking_place} yet.")
    else:
        rows = [
            (run.run_id, run.name, _task(run), run.status, _when(run), _took(run), _figure(run.metrics.get(metric)))
            for run in runs
        ]
        print_table("", ("run", "name", "task", "status", "started", "took", metric), rows, _colour)


@command.command()
@click.argument("run")
@AS_JSON
def show(run: str, as_json: bool) -> None:
    """Everything about one RUN (id or its beginning, key, or name): parameters, last metrics, tags."""
    from heimdall.settings import Settings
    from heimdall.tracking.queries import RunQueries

    _show(_find(RunQueries(Settings()), run), as_json)


@command.command()
@METRIC
@MODE
@AS_JSON
def best(metric: str, mode: Any, as_json: bool) -> None:
    """The finished run with the best last value of a metric."""
    from heimdall.errors import DataError
    from heimdall.settings import Settings
    from heimdall.tracking.queries import RunQueries

    settings = Settings()
    found = RunQueries(settings).get_best_run(metric, mode)
    if found is None:
        raise DataError(
            f"No finished run in {settings.mlflow_experiment_name} has the metric {metric!r}.",
            mend="heimdall runs list shows the runs; --metric names another metric.",
        )
    _show(found, as_json)


@command.command()
@click.argument("runs", nargs=-1, required=True)
@METRIC
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Draw the learning curves into this file (.png, .svg, .pdf)."
)
@AS_JSON
def compare(runs: tuple[str, ...], metric: str, picture: Path | None, as_json: bool) -> None:
    """RUNS side by side: what differs in their parameters, and their last metrics.

    A run is named by its id or the beginning of it, its key, or its name.
    """
    from heimdall.registry.curves import draw_curves
    from heimdall.settings import Settings
    from heimdall.tracking.queries import RunQueries

    settings = Settings()
    queries = RunQueries(settings)
    infos = [_find(queries, run) for run in runs]
    if picture is not None:
        draw_curves(infos, metric, picture, settings)
    if as_json:
        click.echo(json.dumps([_as_dict(info) for info in infos], indent=1))
        return
    rows = [("status", *(info.status for info in infos)), ("took", *(_took(info) for info in infos))]
    rows += _differing([dict(info.params) for info in infos])
    names = sorted({name for info in infos for name in info.metrics})
    rows += [(name, *(_figure(info.metrics.get(name)) for info in infos)) for name in names]
    print_table("", ("", *(info.name or info.run_id[:8] for info in infos)), rows)
    if picture is not None:
        click.echo(f"Learning curves: {picture}")


def _find(queries: RunQueries, run: str) -> RunInfo:
    """The run with this id or key, else the only one of the experiment with this name or beginning of its id."""
    from heimdall.errors import UsageError

    try:
        return queries.get_run_info(run)
    except UsageError:
        matching = [
            info for info in queries.list_runs(NEWEST) if info.name == run or (run and info.run_id.startswith(run))
        ]
        if not matching:
            raise
    if len(matching) > 1:
        ids = ", ".join(info.run_id for info in matching[:5])
        raise UsageError(f"{len(matching)} runs are called {run!r}.", mend=f"Name one by its id: {ids}.")
    return matching[0]


def _show(info: RunInfo, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_as_dict(info), indent=1))
        return
    click.secho(f"{info.name or info.run_id}", bold=True)
    click.echo(f"run {info.run_id}  {info.status}  started {_when(info)}  took {_took(info)}")
    click.echo(f"artifacts {info.artifact_uri}")
    if info.metrics:
        print_table("", ("metric", "last value"), [(k, _figure(v)) for k, v in sorted(info.metrics.items())])
    if info.params:
        print_table("", ("parameter", "value"), sorted(info.params.items()))


def _differing(columns: list[dict[str, str]]) -> list[tuple[str, ...]]:
    names = sorted({name for column in columns for name in column})
    rows = [(name, *(column.get(name, "–") for column in columns)) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _as_dict(info: RunInfo) -> dict[str, Any]:
    # NaN is not JSON: a figure that is not finite becomes null
    return {
        "run_id": info.run_id,
        "run_key": info.run_key,
        "name": info.name,
        "status": info.status,
        "start_time": info.start_time.isoformat(),
        "end_time": info.end_time.isoformat() if info.end_time else None,
        "params": dict(info.params),
        "metrics": {name: value if math.isfinite(value) else None for name, value in info.metrics.items()},
        "tags": dict(info.tags),
        "artifact_uri": info.artifact_uri,
    }


def _task(info: RunInfo) -> str:
    return info.tags.get("heimdall.task", "")


def _when(info: RunInfo) -> str:
    return info.start_time.astimezone().strftime("%Y-%m-%d %H:%M")


def _took(info: RunInfo) -> str:
    if info.end_time is None:
        return "–"
    seconds = int((info.end_time - info.start_time).total_seconds())
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds % 60:02d} s"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _colour(row: Sequence[str]) -> str:
    return {"FAILED": "red", "KILLED": "yellow", "RUNNING": "cyan"}.get(row[3], "")
