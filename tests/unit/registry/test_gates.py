from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from heimdall.errors import ConfigError
from heimdall.registry.gates import CalibrationGate, Figures, Gates, MetricGate, find_gates, judge, read_gates
from heimdall.tasks.base import find_task


def figures(error: float | None = 10.0, **more: Any) -> Figures:
    given = {
        "metrics": {"error": error, "coverage": 0.68},
        "digest": "d1",
        "count": 100,
        "latency_ms": 5.0,
        "onnx_deviation": 1e-5,
    }
    return Figures(**{**given, **more})


def gates(**more: Any) -> Gates:
    metric = MetricGate(metric="error", limit=20.0, allowed_regression=0.1)
    return Gates(**{"metrics": (metric,), "min_samples": 10, **more})


def test_a_challenger_within_all_gates_is_promoted() -> None:
    assert judge(gates(), figures(10.9), figures(10.0)).verdict == "PROMOTE"


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (figures(21.0), None, "error is 21, asked for: at most 20"),
        (figures(11.1), figures(10.0), "champion 10, allowed 10% worse"),
        (figures(None), figures(10.0), "missing or not a finite number"),
        (figures(metrics={}), None, "missing or not a finite number"),
        (figures(count=9), None, "samples is 9, asked for: at least 10"),
        (figures(), figures(digest="d2"), "the data set changed between the two evaluations"),
        (figures(onnx_deviation=0.01), None, "onnx_deviation is 0.01, asked for: at most 0.001"),
    ],
)
def test_each_gate_holds_with_its_reason(ours: Figures, theirs: Figures | None, reason: str) -> None:
    judgement = judge(gates(), ours, theirs)
    assert judgement.verdict == "HOLD"
    assert len(judgement.reasons) == 1
    assert reason in judgement.reasons[0]


def test_calibration_fails_on_both_sides_and_on_nan() -> None:
    strict = gates(calibration=(CalibrationGate(metric="coverage", at_least=0.6, at_most=0.8),))
    verdicts = [
        judge(strict, figures(metrics={"error": 1.0, "coverage": value}), None).verdict
        for value in (0.59, 0.6, 0.8, 0.81, None)
    ]
    assert verdicts == ["HOLD", "PROMOTE", "PROMOTE", "HOLD", "HOLD"]


def test_latency_holds_a_slow_model() -> None:
    assert judge(gates(max_latency_ms=4.0), figures(), None).reasons == (
        "latency_ms is 5, asked for: at most 4 ms for one sample",
    )


def test_more_is_better_where_the_gate_says_so() -> None:
    upward = Gates(metrics=(MetricGate(metric="error", direction="max", limit=5.0, allowed_regression=0.1),))
    assert judge(upward, figures(9.1), figures(10.0)).verdict == "PROMOTE"
    assert judge(upward, figures(8.9), figures(10.0)).verdict == "HOLD"


def test_regression_is_measured_rightly_for_a_negative_champion() -> None:
    loss = Gates(metrics=(MetricGate(metric="error", allowed_regression=0.1),))
    assert judge(loss, figures(-9.1), figures(-10.0)).verdict == "PROMOTE"
    assert judge(loss, figures(-8.9), figures(-10.0)).verdict == "HOLD"


def test_a_champion_without_a_figure_cannot_block_and_the_rule_says_so() -> None:
    judgement = judge(gates(), figures(), figures(None))
    assert judgement.verdict == "PROMOTE"
    assert "not compared" in next(check.rule for check in judgement.checks if check.name == "error")


def test_pinned_data_must_be_the_data() -> None:
    assert judge(gates(data_digest="d1"), figures(), None).verdict == "PROMOTE"
    assert "the gates ask for d9" in judge(gates(data_digest="d9"), figures(), None).reasons[0]


def test_three_formats_say_the_same(tmp_path: Path) -> None:
    files = {
        "g.toml": 'min_samples = 5\n[[metrics]]\nmetric = "error"\nlimit = 3.0\n',
        "g.yaml": "min_samples: 5\nmetrics:\n  - {metric: error, limit: 3.0}\n",
        "g.json": '{"min_samples": 5, "metrics": [{"metric": "error", "limit": 3.0}]}',
    }
    read = []
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        read.append(read_gates(tmp_path / name))
    assert read[0] == read[1] == read[2]
    assert len({one.digest for one in read}) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[metrics]]\nmetric = "error"\n', "needs a limit, an allowed_regression, or both"),
        ('[[metrics]]\nmetric = "error"\nlimmit = 3\n', "metrics.0.limmit"),
        ("min_samples = 5\n", "metrics"),
        ("metrics = [", "not valid TOML"),
    ],
)
def test_a_wrong_gates_file_is_named_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "gates.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_gates(path)
    assert "gates.toml" in str(caught.value)


@pytest.mark.parametrize("task", ["localization", "ptychography"])
def test_both_tasks_ship_gates(task: str) -> None:
    assert find_gates(find_task(task), None).metrics


@pytest.mark.parametrize("model", [Gates, MetricGate, CalibrationGate])
def test_the_reference_names_every_key_as_the_code_describes_it(model: Any) -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "gates.md").read_text()
    for name, field in model.model_fields.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |") and field.description in line)
        assert row


def test_the_example_of_the_reference_is_a_gates_file(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "gates.md").read_text()
    path = tmp_path / "gates.toml"
    path.write_text(text.split("```toml\n")[1].split("```")[0])
    assert read_gates(path).max_latency_ms == 50.0
