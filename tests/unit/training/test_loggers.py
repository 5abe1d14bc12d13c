"""One suite over every logger; then what is special about each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from heimdall.errors import OutputError
from heimdall.training.loggers import (
    CsvLogger,
    History,
    MetricLogger,
    TensorBoardLogger,
    TrackerLogger,
    next_version,
    write_hparams,
)

Points = dict[str, list[tuple[int, float]]]


class Records:
    """A tracker that only remembers: the wall here is heimdall.tracking's, tested there with real servers."""

    def __init__(self) -> None:
        self.points: Points = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.points.setdefault(name, []).append((step or 0, value))


def tracker(_: Path) -> tuple[Callable[[], MetricLogger], Callable[[], Points]]:
    records = Records()

    def again() -> MetricLogger:
        return TrackerLogger(records, {name: points[-1][0] for name, points in records.points.items()})

    return again, lambda: records.points


def csv(folder: Path) -> tuple[Callable[[], MetricLogger], Callable[[], Points]]:
    def points() -> Points:
        rows = pd.read_csv(folder / "metrics.csv")
        names = [name for name in rows.columns if name != "step"]
        found = {n: list(rows[["step", n]].dropna().itertuples(index=False, name=None)) for n in names}
        return {**found, "epoch": sorted(set(found["epoch"]))}

    return lambda: CsvLogger(folder), points


def tensorboard(folder: Path) -> tuple[Callable[[], MetricLogger], Callable[[], Points]]:
    made: list[int] = []

    def again() -> MetricLogger:
        made.append(0)
        return TensorBoardLogger(folder, 2 if len(made) > 1 else None)

    def points() -> Points:
        events = EventAccumulator(str(folder))
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return again, points


@pytest.fixture(params=[tracker, csv, tensorboard])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[[], MetricLogger], Callable[[], Points]]:
    found: tuple[Callable[[], MetricLogger], Callable[[], Points]] = request.param(tmp_path / "logs")
    return found


def test_what_is_logged_can_be_read_back(kind: tuple[Callable[[], MetricLogger], Callable[[], Points]]) -> None:
    make, points = kind
    logger = make()
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, 0)
    logger.log_metrics({"train/loss": 0.25, "epoch": 0}, 1)
    logger.log_metrics({"val/loss": 2.0, "epoch": 0}, 1)
    logger.save()
    logger.finalize("success")
    found = points()
    assert found["train/loss"] == [(0, 0.5), (1, 0.25)]
    assert found["val/loss"] == [(1, 2.0)]
    assert [step for step, _ in found["epoch"]] == [0, 1]


def test_a_resumed_run_gives_no_step_a_second_point_and_leaves_no_gap(
    kind: tuple[Callable[[], MetricLogger], Callable[[], Points]],
) -> None:
    make, points = kind
    first = make()
    for step in range(4):
        first.log_metrics({"train/loss": step / 2, "epoch": 0}, step)
    first.save()
    first.finalize("failed")
    second = make()  # the checkpoint was taken after step 1
    for step in range(2, 6):
        second.log_metrics({"train/loss": step / 2, "epoch": 0}, step)
    second.log_metrics({"val/loss": 1.0, "epoch": 0}, 3)
    second.finalize("success")
    assert points()["train/loss"] == [(step, step / 2) for step in range(6)]
    assert points()["val/loss"] == [(3, 1.0)]


def test_csv_keeps_every_row_when_a_column_comes_late(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    for step in range(5):
        logger.log_metrics({"a": float(step), "epoch": 0}, step)
    logger.log_metrics({"b, with a comma": 7.5, "epoch": 1}, 5)
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert list(rows.columns) == ["epoch", "step", "a", "b, with a comma"]
    assert rows["a"].dropna().tolist() == [0, 1, 2, 3, 4]
    assert rows["b, with a comma"].dropna().tolist() == [7.5]


def test_csv_is_on_the_disk_after_every_row(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    assert pd.read_csv(tmp_path / "metrics.csv")["a"].tolist() == [1.0]


def test_csv_cuts_off_a_torn_last_row_and_writes_it_again(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"a": float(step), "epoch": 0}, step)
    logger.finalize("failed")
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-3])
    again = CsvLogger(tmp_path)
    again.log_metrics({"a": 2.0, "epoch": 0}, 2)
    again.log_metrics({"a": 3.0, "epoch": 0}, 3)
    assert pd.read_csv(path)["a"].tolist() == [0, 1, 2, 3]


def test_csv_keeps_nan_and_infinity_apart_from_empty(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"a": float("nan")}, 0)
    logger.log_metrics({"a": float("inf")}, 1)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == ["0,0,nan", "0,1,inf"]


def test_a_strange_file_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("my own notes\n")
    with pytest.raises(OutputError, match="not a file of metrics"):
        CsvLogger(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "my own notes\n"


def test_versions_count_up(tmp_path: Path) -> None:
    assert next_version(tmp_path) == 0
    write_hparams(tmp_path / "lightning_logs" / "version_0", {"a": 1})
    write_hparams(tmp_path / "lightning_logs" / "version_9", {"a": 1})
    assert next_version(tmp_path) == 10


def test_the_history_travels_in_plain_tensors() -> None:
    first = History()
    first.log_metrics({"loss": 0.5, "epoch": 0}, 3)
    first.log_metrics({"loss": 0.25, "epoch": 1}, 7)
    second = History()
    second.load(first.state())
    assert second.points == {"loss": [(3, 0, 0.5), (7, 1, 0.25)]}
    assert second.next_step == 8
