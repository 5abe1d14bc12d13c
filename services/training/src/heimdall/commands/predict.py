"""``heimdall predict``: a model on new data, one row a sample."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

SUMMARY = "Run a model on new recordings."


@click.command(help=SUMMARY)
@click.option(
    "--model", required=True, help="models:/NAME@champion, models:/NAME/VERSION, a folder, a checkpoint or a bundle."
)
@click.option("--input", "source", required=True, help="Recordings: a folder or s3://bucket/prefix.")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="File to write: .parquet, .csv or .geojson."
)
@click.option(
    "--runtime", type=click.Choice(["onnx", "torch"]), default="onnx", show_default=True, help="What runs the network."
)
@click.option(
    "--provider", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where it runs."
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Samples at once.")
@click.option("--task", default="", help="Task of a bare checkpoint or bundle.")
@click.option("--compare", is_flag=True, help="Run torch and ONNX Runtime, print the throughput of both.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def command(model: str, source: str, output: Path, compare: bool, quiet: bool, **options: Any) -> None:
    """See the module."""
    from heimdall.registry.predict import measure, predict_to_file
    from heimdall.settings import Settings

    settings = Settings()
    with _progress(quiet) as after_batch:
        done = predict_to_file(model, source, output, settings, after_batch=after_batch, **options)
    if not quiet:
        click.echo(f"{done.rows} rows in {output}")
    results = [done]
    if compare:
        options["runtime"] = "torch" if done.runtime == "onnx" else "onnx"
        results.append(measure(model, source, settings, **options))
    if compare or not quiet:
        for result in results:
            rate = f"{result.throughput:,.0f} samples/s in the network"
            click.echo(f"{result.runtime}: {rate}, batches of {options['batch_size']}")


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int], None]]:
    """A counter on stderr, without an end: how many samples there are is known to the task only."""
    if quiet or not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.completed:.0f} samples"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("predict", total=None)
        yield lambda count: bar.advance(row, count)
