from __future__ import annotations

import io
from pathlib import Path

import torch
from rich.console import Console

from heimdall.tasks.base import Report
from heimdall.training.closing import duration, print_closing
from heimdall.training.config import RunConfig
from heimdall.training.pipeline import TrainingResult
from heimdall.training.progress import figures
from toy_task import ToyTask


def test_figures_are_left_out_rather_than_cut() -> None:
    metrics = {name: torch.tensor(0.25) for name in ("train/loss_step", "train/loss_epoch", "val/mae", "val/loss")}
    assert figures(metrics, 90) == "val/loss 0.25  train/loss 0.25  val/mae 0.25"
    assert figures(metrics, 30) == "val/loss 0.25  train/loss 0.25"
    assert figures(metrics, 5) == ""


def test_no_figure_of_the_closing_table_is_cut_on_a_narrow_terminal() -> None:
    rows = tuple((f"a method with a rather long name {n}", "12345.6", "98765.4", "11111.1") for n in range(2))
    report = Report(metrics={}, columns=("method", "median in metres", "mean in metres", "p 90"), rows=rows)
    console = Console(width=70, record=True, file=io.StringIO())
    result = TrainingResult(
        run_id="r1",
        best_checkpoint=Path("x"),
        report=report,
        output_dir=Path("/out"),
        model_version="3",
        delivered=True,
        metrics={},
        seconds=62,
    )
    print_closing(console, ToyTask(), RunConfig(), result)
    said = console.export_text()
    assert said.count("12345.6") == said.count("98765.4") == said.count("11111.1") == 2
    assert "…" not in said
    assert "Took 1 min 2 s. Everything is in /out" in said
    assert "Registered heimdall-toy version 3" in said
    assert "heimdall ui --run r1" in said


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (3.2, 185, 7800)] == ["3 s", "3 min 5 s", "2 h 10 min"]
