"""The contract of a sink, over each: in memory, MLflow on SQLite, on PostgreSQL, a server with S3, a proxied one."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from heimdall.settings import Settings
from heimdall.tracking.limits import Batch, Point
from heimdall.tracking.mlflow_sink import MLflowSink
from heimdall.tracking.sinks import KEY_TAG, MemorySink, PermanentError, RunStart, Sink, TransientError

pytestmark = pytest.mark.xdist_group("servers")

KINDS = ("memory", "sqlite", "postgresql", "server", "proxied")
START = RunStart("hd-key", "my run", "contract", 1_700_000_000_000, {"who": "tests"})


class Seen:
    """What a sink holds, read back past it."""

    def __init__(self, sink: Sink, settings: Settings | None, s3: Any) -> None:
        self.sink, self.settings, self.s3 = sink, settings, s3

    def client(self) -> Any:
        from mlflow.tracking import MlflowClient

        assert self.settings is not None
        return MlflowClient(self.settings.tracking_uri)

    def points(self, run_id: str, name: str) -> list[tuple[int, int, float]]:
        if isinstance(self.sink, MemorySink):
            found = [p for p in self.sink.runs[run_id].points if p.name == name]
            return sorted((p.step, p.timestamp_ms, p.value) for p in found)
        return sorted((m.step, m.timestamp, m.value) for m in self.client().get_metric_history(run_id, name))

    def params(self, run_id: str) -> dict[str, str]:
        if isinstance(self.sink, MemorySink):
            return self.sink.runs[run_id].params
        return dict(self.client().get_run(run_id).data.params)

    def tags(self, run_id: str) -> dict[str, str]:
        if isinstance(self.sink, MemorySink):
            return self.sink.runs[run_id].tags
        return dict(self.client().get_run(run_id).data.tags)

    def status(self, run_id: str) -> tuple[str, int]:
        if isinstance(self.sink, MemorySink):
            return self.sink.runs[run_id].status, self.sink.runs[run_id].end_ms
        info = self.client().get_run(run_id).info
        return info.status, info.end_time or 0

    def count_runs(self) -> int:
        if isinstance(self.sink, MemorySink):
            return len(self.sink.runs)
        experiment = self.client().get_experiment_by_name(START.experiment)
        return len(self.client().search_runs([experiment.experiment_id], f"tags.`{KEY_TAG}` = '{START.key}'"))

    def file(self, run_id: str, destination: str) -> bytes:
        if isinstance(self.sink, MemorySink):
            return self.sink.runs[run_id].files[destination]
        root = self.client().get_run(run_id).info.artifact_uri
        where = urlparse(root)
        if where.scheme == "s3":
            key = f"{where.path.lstrip('/')}/{destination}"
            return bytes(self.s3.client().get_object(Bucket=where.netloc, Key=key)["Body"].read())
        if where.scheme == "mlflow-artifacts":
            assert self.settings is not None
            path = f"{where.path.lstrip('/')}/{destination}"
            url = f"{self.settings.tracking_uri}/api/2.0/mlflow-artifacts/artifacts/{path}"
            with urllib.request.urlopen(url) as reply:  # noqa: S310 - our own server on loopback
                return bytes(reply.read())
        return (Path(where.path) / destination).read_bytes()


@pytest.fixture(scope="module")
def proxied_server(make_mlflow_server: Callable[..., Any]) -> Any:
    return make_mlflow_server(proxied=True)


@pytest.fixture(params=KINDS)
def seen(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    if request.param == "memory":
        yield Seen(MemorySink(), None, None)
        return
    s3 = request.getfixturevalue("s3")
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    if request.param == "postgresql":
        monkeypatch.setenv("MLFLOW_ARTIFACT_URI", f"s3://{s3.make_bucket()}/runs")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("make_database")())
    elif request.param in {"server", "proxied"}:
        fixture = "mlflow_server" if request.param == "server" else "proxied_server"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue(fixture).url)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    settings = Settings()
    sink = MLflowSink(settings)
    yield Seen(sink, settings, s3)
    sink.close()


def test_everything_said_twice_is_kept_once(seen: Seen, tmp_path: Path) -> None:
    """One test for all five methods: making a data base is most of what it takes."""
    sink = seen.sink
    run_id = sink.ensure_run(START).run_id
    assert sink.ensure_run(START).run_id == run_id
    assert seen.count_runs() == 1

    points = [Point("loss", step / 3, 1_700_000_000_000 + step, step) for step in range(1000)]
    special = [Point("nan", math.nan, 5, 0), Point("inf", math.inf, 5, 0), Point("minus", -math.inf, 5, 0)]
    batch = Batch(points, {"lr": ("0.1", 7)}, {"note": "first"})
    sink.write_batch(run_id, batch)
    sink.write_batch(run_id, batch)
    sink.write_batch(run_id, Batch([*points[-3:], Point("loss", 9.0, 1_800_000_000_000, 1000), *special]))
    sink.write_batch(run_id, Batch(special))
    assert seen.points(run_id, "loss") == [(p.step, p.timestamp_ms, p.value) for p in points] + [
        (1000, 1_800_000_000_000, 9.0)
    ]
    ((_, _, nan),), ((_, _, inf),), ((_, _, minus),) = (seen.points(run_id, name) for name in ("nan", "inf", "minus"))
    assert math.isnan(nan)
    assert inf >= 1.7976931348623157e308, "MLflow's databases keep infinity as the largest number"
    assert minus <= -1.7976931348623157e308

    sink.write_batch(run_id, Batch(params={"lr": ("0.2", 8), "new": ("1", 8)}, tags={"note": "second"}))
    assert seen.params(run_id) == {"lr": "0.1", "new": "1"}
    tags = seen.tags(run_id)
    assert tags["heimdall.changed_param.lr"] == "0.1 -> 0.2 (at 8 ms)"
    assert (tags["note"], tags["who"], tags[KEY_TAG]) == ("second", "tests", START.key)

    file = tmp_path / "model.bin"
    file.write_bytes(bytes(range(256)) * 100)
    for _ in range(2):
        sink.upload(run_id, file, "deep/er/model.bin")
    copy = tmp_path / "copy" / "again.bin"
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    sink.upload(run_id, copy, "again.bin", same_as="deep/er/model.bin")
    assert seen.file(run_id, "deep/er/model.bin") == seen.file(run_id, "again.bin") == file.read_bytes()

    if not isinstance(sink, MemorySink):
        # a request whose reply was lost, obeyed late
        experiment = seen.client().get_run(run_id).info.experiment_id
        seen.client().create_run(experiment, tags={KEY_TAG: START.key})
        assert seen.count_runs() == 2
    for status in ("FINISHED", "FINISHED", "RUNNING", "KILLED"):
        sink.set_status(run_id, status, 1_800_000_000_000)
        assert seen.status(run_id)[0] == status
    assert seen.status(run_id)[1] == 1_800_000_000_000
    assert seen.count_runs() == 1
    assert sink.ensure_run(START).run_id == run_id

    attached = RunStart("hd-other", "x", START.experiment, 0, run_id=run_id)
    assert sink.ensure_run(attached).run_id == run_id
    assert seen.tags(run_id)[KEY_TAG] == START.key
    if not isinstance(sink, MemorySink):
        refused = Batch([Point("a//b", 1.0, 1, 1)])
        with pytest.raises(PermanentError):
            sink.write_batch(run_id, refused)


def test_a_server_that_is_away_is_a_transient_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("http://127.0.0.1:9", "postgresql://me:pw-secret@127.0.0.1:9/none", "sqlite:////proc/none/mlflow.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        sink = MLflowSink(Settings())
        with pytest.raises(TransientError) as caught:
            sink.ensure_run(START)
        assert "pw-secret" not in str(caught.value)
        sink.close()
