"""The contract of a tracker: MLflowTracker on SQLite, on a server with S3, on PostgreSQL directly; NullTracker."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from heimdall.errors import HoldError, OutputError, ServiceError, UsageError
from heimdall.settings import Settings
from heimdall.tracking.limits import Batch, Point
from heimdall.tracking.mlflow_sink import MLflowSink
from heimdall.tracking.sinks import RunStart
from heimdall.tracking.tracker import MLflowTracker, NullTracker, initialize_mlflow

pytestmark = pytest.mark.xdist_group("servers")
WAIT_SECONDS = 60.0


@pytest.fixture(params=["sqlite", "server", "postgresql"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MLflowTracker]:
    if request.param != "sqlite":
        s3 = request.getfixturevalue("s3")
        for name, value in s3.environment().items():
            monkeypatch.setenv(name, value)
        if request.param == "postgresql":
            monkeypatch.setenv("MLFLOW_ARTIFACT_URI", f"s3://{s3.make_bucket()}/runs")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("make_database")())
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_server").url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"contract-{tmp_path.name}")
    monkeypatch.setenv("HEIMDALL_START_WAIT_SECONDS", str(WAIT_SECONDS))
    monkeypatch.setenv("HEIMDALL_END_WAIT_SECONDS", str(WAIT_SECONDS))
    made = MLflowTracker(Settings())
    yield made
    made.end_run("FAILED")


def finished(tracker: MLflowTracker, name: str, metrics: dict[str, float], **params: Any) -> str:
    run_id = tracker.start_run(name)
    tracker.log_params(params)
    tracker.log_metrics(metrics, step=1)
    tracker.end_run()
    assert tracker.undelivered == 0
    return run_id


def aliases(tracker: MLflowTracker, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in tracker.client.get_registered_model(name).aliases.items()}


def kept(tracker: MLflowTracker, name: str, metrics: dict[str, float], status: str = "FINISHED", **params: str) -> str:
    """A run made by the sink itself, which is quicker than a courier for each."""
    sink = MLflowSink(tracker.settings)
    start_ms = 1_700_000_000_000 + len(tracker.list_runs())
    start = RunStart(f"hd-{name}", name, tracker.settings.mlflow_experiment_name, start_ms)
    run_id = sink.ensure_run(start).run_id
    points = [Point(metric, value, start_ms, 1) for metric, value in metrics.items()]
    sink.write_batch(run_id, Batch(points, {param: (text, start_ms) for param, text in params.items()}))
    if status != "RUNNING":
        sink.set_status(run_id, status, start_ms + 1000)
    sink.close()
    return run_id


def test_a_run_and_a_model_from_start_to_production(tracker: MLflowTracker, tmp_path: Path) -> None:
    report = tmp_path / "report"
    (report / "figures").mkdir(parents=True)
    (report / "figures" / "curve.png").write_bytes(b"png")
    (report / "metrics.json").write_text("{}")
    before = datetime.now(UTC)
    run_id = tracker.start_run("first", {"task": "tests"})
    assert tracker.run_id == run_id != tracker.run_key
    tracker.log_params({"lr": 0.1, "layers": [1, 2], "nested": {"a": None}, "text": "as it is"})
    for step in range(20):
        tracker.log_metrics({"loss": 1 / (step + 1), "nan": math.nan}, step=step)
    tracker.log_metrics({"final": 7})
    tracker.set_tags({"colour": "blue"})
    tracker.log_artifact(report / "metrics.json", "summary")
    tracker.log_artifacts_dir(report, "report")
    assert tracker.flush(WAIT_SECONDS)
    assert tracker.undelivered == 0
    assert tracker.get_run_info(run_id).status == "RUNNING"
    tracker.end_run()
    tracker.end_run()

    info = tracker.get_run_info(tracker.run_key)
    assert (info.run_id, info.run_key, info.name, info.status) == (run_id, tracker.run_key, "first", "FINISHED")
    assert info.params == {"lr": "0.1", "layers": "[1, 2]", "nested": '{"a": null}', "text": "as it is"}
    assert info.metrics["loss"] == 1 / 20
    assert math.isnan(info.metrics["nan"])
    assert info.metrics["final"] == 7.0
    assert (info.tags["task"], info.tags["colour"]) == ("tests", "blue")
    assert info.end_time is not None
    assert before - timedelta(seconds=1) <= info.start_time <= info.end_time <= datetime.now(UTC)
    history = tracker.client.get_metric_history(run_id, "loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(s, 1 / (s + 1)) for s in range(20)]
    artifacts = [item.path for item in tracker.client.list_artifacts(run_id, "report")]
    assert artifacts == ["report/figures", "report/metrics.json"]

    first = tracker.register_model("model-" + tracker.run_key, f"runs://{run_id}/summary", "What it is.", {"a": "b"})
    second = tracker.register_model("model-" + tracker.run_key, f"runs:/{tracker.run_key}/summary")
    assert (first, second) == ("1", "2")
    made = tracker.client.get_model_version("model-" + tracker.run_key, first)
    assert (made.description, made.run_id, made.status, made.tags) == ("What it is.", run_id, "READY", {"a": "b"})
    assert made.source.endswith("/artifacts/summary")
    name = "model-" + tracker.run_key
    tracker.transition_model_stage(name, first, "Staging")
    tracker.transition_model_stage(name, first, "production")
    tracker.transition_model_stage(name, second, "Staging")
    assert aliases(tracker, name) == {"champion": "1", "challenger": "2"}
    tracker.transition_model_stage(name, second, "Production")
    assert aliases(tracker, name) == {"champion": "2"}
    assert tracker.client.get_model_version(name, first).current_stage == "Archived"
    tracker.transition_model_stage(name, second, "Archived")
    assert aliases(tracker, name) == {}


def test_the_best_run_is_finished_a_number_and_the_earlier_of_equals(tracker: MLflowTracker) -> None:
    assert tracker.get_best_run("loss") is None
    first = kept(tracker, "first", {"loss": 0.5}, lr="1")
    kept(tracker, "equal", {"loss": 0.5}, lr="2")
    highest = kept(tracker, "worse", {"loss": 0.7})
    kept(tracker, "not a number", {"loss": math.nan})
    kept(tracker, "another metric", {"accuracy": 1.0})
    kept(tracker, "unfinished", {"loss": 0.1}, "RUNNING")
    kept(tracker, "broken", {"loss": 0.1}, "FAILED")
    best, worst = tracker.get_best_run("loss"), tracker.get_best_run("loss", "max")
    assert best is not None
    assert worst is not None
    assert (best.run_id, worst.run_id) == (first, highest)
    table = tracker.compare_runs([first, highest])
    assert list(table.index) == [first, highest]
    assert list(table["metrics.loss"]) == [0.5, 0.7]
    assert table.loc[first, "params.lr"] == "1"
    assert [run.name for run in tracker.list_runs(2)] == ["broken", "unfinished"]


def test_a_run_is_resumed_by_its_id_its_key_and_from_another_machine(tracker: MLflowTracker, tmp_path: Path) -> None:
    run_id = finished(tracker, "first", {"loss": 3.0}, lr=1)
    key = tracker.run_key
    assert tracker.start_run(resume=key) == run_id
    tracker.log_metrics({"loss": 2.0}, step=2)
    tracker.end_run("KILLED")
    there = {"heimdall_home": tmp_path / "elsewhere", "mlflow_tracking_uri": SecretStr(tracker.settings.tracking_uri)}
    elsewhere = MLflowTracker(tracker.settings.model_copy(update=there))
    assert elsewhere.start_run(resume=run_id) == run_id
    elsewhere.log_metrics({"loss": 1.0}, step=3)
    elsewhere.end_run()
    history = tracker.client.get_metric_history(run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    info = tracker.get_run_info(run_id)
    assert (info.status, info.run_key, info.name) == ("FINISHED", key, "first")
    assert len(tracker.list_runs()) == 1


def test_a_gate_keeps_a_version_out_of_production(tmp_path: Path) -> None:
    def gate(model_name: str, version: str) -> None:
        raise HoldError(f"{model_name} {version} is worse than its champion.")

    with pytest.raises(HoldError, match="m 3 is worse"):
        MLflowTracker(Settings(), gate=gate).transition_model_stage("m", 3, "Production")


def test_wrong_use_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEIMDALL_START_WAIT_SECONDS", "0")
    monkeypatch.setenv("HEIMDALL_END_WAIT_SECONDS", "0")
    tracker = MLflowTracker(Settings())
    with pytest.raises(UsageError, match="no stage 'best'"):
        tracker.transition_model_stage("m", 1, "best")
    with pytest.raises(UsageError, match="no mode 'best'"):
        tracker.get_best_run("loss", "best")  # type: ignore[arg-type]
    tracker.start_run()
    try:
        with pytest.raises(UsageError, match="still open"):
            tracker.start_run()
        with pytest.raises(OutputError, match="cannot be read"):
            tracker.log_artifact(tmp_path / "none.txt")
        tracker.log_metrics({"good": 1.0, "bad": "word"})  # type: ignore[dict-item]
    finally:
        tracker.end_run()


def test_a_question_to_a_server_that_is_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw-secret@127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"http://me:\S+@127.0.0.1:9 did not do it") as caught:
        MLflowTracker(Settings()).get_run_info("0" * 32)
    assert "pw-secret" not in str(caught.value)


def test_the_null_tracker_takes_everything_and_keeps_nothing(tmp_path: Path) -> None:
    tracker = NullTracker()
    assert tracker.start_run("name", {"a": "b"}, resume="x") == tracker.run_id == tracker.run_key == ""
    tracker.log_params({"a": 1})
    tracker.log_metrics({"a": 1.0}, step=1)
    tracker.set_tags({"a": "b"})
    tracker.log_artifact(tmp_path / "none")
    tracker.log_artifacts_dir(tmp_path / "none")
    assert tracker.flush(0.0)
    assert tracker.undelivered == 0
    tracker.end_run("KILLED")
    assert not Settings().home.exists()


def test_null_and_mlflow_trackers_take_the_same_calls() -> None:
    import inspect

    for name, method in inspect.getmembers(NullTracker, inspect.isfunction):
        assert inspect.signature(method) == inspect.signature(getattr(MLflowTracker, name)), name


def test_the_training_process_imports_no_mlflow() -> None:
    script = (
        "import sys, heimdall; t = heimdall.initialize_mlflow(); t.start_run('light'); t.log_params({'a': 1})\n"
        "t.log_metrics({'b': 1.0}, step=1); t.set_tags({'c': 'd'}); t.log_artifact(__import__('json').__file__)\n"
        "t.end_run(); bad = {'mlflow', 'boto3', 'torch', 'lightning', 'pandas'} & set(sys.modules)\n"
        "assert not bad, bad; assert t.undelivered == 0, t.undelivered"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_initialize_takes_its_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    assert initialize_mlflow().settings.mlflow_experiment_name == "from the environment"
