"""Gates: what a model must show before it goes into production.

A gates file is TOML, YAML or JSON. A task ships its own as ``gates.toml`` beside its code; ``--gates FILE`` takes its
place.
Judging is pure: figures in, verdict out.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heimdall.errors import ConfigError
from heimdall.registry.card import figure
from heimdall.tasks.base import Task

Verdict = Literal["PROMOTE", "HOLD"]


class MetricGate(BaseModel):
    """One figure of the evaluation, compared with a limit and with the champion's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(min_length=1, description="Name of a metric of the evaluation.")
    direction: Literal["min", "max"] = Field("min", description="Whether less or more of it is better.")
    limit: float | None = Field(None, allow_inf_nan=False, description="Worst value that is accepted at all.")
    allowed_regression: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="How much worse than the champion it may be, as a share of the champion's figure; "
        "0: not at all; absent: it is not compared.",
    )

    @model_validator(mode="after")
    def _asks_something(self) -> MetricGate:
        if self.limit is None and self.allowed_regression is None:
            raise ValueError(f"the gate on {self.metric} needs a limit, an allowed_regression, or both")
        return self


class CalibrationGate(BaseModel):
    """A share of truths inside the stated uncertainty, which must be neither too small nor too large."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(min_length=1, description="Name of a metric of the evaluation.")
    at_least: float = Field(allow_inf_nan=False, description="Smallest accepted value.")
    at_most: float = Field(allow_inf_nan=False, description="Largest accepted value.")


class Gates(BaseModel):
    """All gates of one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("", description="Data set to judge on (folder, file or s3://…), where --data names none.")
    data_digest: str = Field("", description="Digest that this data set must have; empty accepts what is there.")
    min_samples: int = Field(1, ge=1, description="Samples that the data set must have.")
    metrics: tuple[MetricGate, ...] = Field(min_length=1, description="Gates on figures.")
    calibration: tuple[CalibrationGate, ...] = Field((), description="Gates on the stated uncertainty.")
    max_latency_ms: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Longest median time for one sample, in milliseconds."
    )
    max_onnx_deviation: float = Field(
        1e-3,
        gt=0,
        allow_inf_nan=False,
        description="Largest deviation of ONNX Runtime from torch, as a share of range.",
    )

    @property
    def digest(self) -> str:
        """sha256 of the gates' content, whatever file format they came in."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Figures(BaseModel):
    """What one model shows on the data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metrics: dict[str, float | None]  # None: not finite
    digest: str
    count: int
    latency_ms: float
    onnx_deviation: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the comparison."""

    name: str
    challenger: float | None
    champion: float | None
    rule: str
    passed: bool

    @property
    def reason(self) -> str:
        """Why it did not pass, in words that can be read without the table."""
        if self.challenger is None:
            return f"{self.name}: {self.rule}"
        return f"{self.name} is {figure(self.challenger)}, asked for: {self.rule}"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict with every check, and the reasons in sentences."""

    verdict: Verdict
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]


def read_gates(path: Path) -> Gates:
    """The gates in a TOML, YAML or JSON file. Raises :class:`ConfigError` with file and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The gates file {path} cannot be read: {error.strerror}.") from error
    readers: dict[str, Any] = {
        ".toml": tomllib.loads,
        ".json": json.loads,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"The gates file {path} must end in .toml, .yaml or .json.")
    try:
        return Gates.model_validate(reader(text))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"The gates file {path} is wrong at {place}: {first['msg']}.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"The gates file {path} is not valid {path.suffix[1:].upper()}: {error}") from error


def find_gates(task: Task[Any], path: Path | None) -> Gates:
    """The gates in ``path``, or those that the task ships beside its code."""
    if path is not None:
        return read_gates(path)
    package = type(task).__module__.rpartition(".")[0]
    shipped = resources.files(package) / "gates.toml" if package else None
    if shipped is None or not shipped.is_file():
        raise ConfigError(f"The task {task.name!r} ships no gates.", mend="Name a gates file: --gates FILE.")
    with resources.as_file(shipped) as file:
        return read_gates(file)


def judge(gates: Gates, challenger: Figures, champion: Figures | None) -> Judgement:
    """Apply all gates. A figure of the challenger that is missing or not finite fails its gate.

    A champion without a finite figure cannot be compared with: the limit alone decides, and the rule says so.
    """
    checks = (*_data_checks(gates, challenger, champion), *_metric_checks(gates, challenger, champion))
    reasons = tuple(check.reason for check in checks if not check.passed)
    return Judgement(verdict="HOLD" if reasons else "PROMOTE", checks=checks, reasons=reasons)


def _data_checks(gates: Gates, challenger: Figures, champion: Figures | None) -> Iterator[Check]:
    count = float(challenger.count)
    yield Check(
        name="samples",
        challenger=count,
        champion=float(champion.count) if champion else None,
        rule=f"at least {gates.min_samples}",
        passed=challenger.count >= gates.min_samples,
    )
    if gates.data_digest and gates.data_digest != challenger.digest:
        rule = f"the data set has digest {challenger.digest[:12]}…, the gates ask for {gates.data_digest[:12]}…"
        yield Check(name="data", challenger=None, champion=None, rule=rule, passed=False)
    if champion is not None and champion.digest != challenger.digest:
        rule = "the data set changed between the two evaluations; run it again on data that stays as it is"
        yield Check(name="data", challenger=None, champion=None, rule=rule, passed=False)


def _metric_checks(gates: Gates, challenger: Figures, champion: Figures | None) -> Iterator[Check]:
    for gate in gates.metrics:
        yield _judge_metric(
            gate, challenger.metrics.get(gate.metric), champion.metrics.get(gate.metric) if champion else None, champion
        )
    for range_gate in gates.calibration:
        value = challenger.metrics.get(range_gate.metric)
        yield Check(
            name=range_gate.metric,
            challenger=value,
            champion=champion.metrics.get(range_gate.metric) if champion else None,
            rule=_missing(range_gate.metric, challenger)
            or f"between {range_gate.at_least:g} and {range_gate.at_most:g}",
            passed=value is not None and range_gate.at_least <= value <= range_gate.at_most,
        )
    if gates.max_latency_ms is not None:
        yield Check(
            name="latency_ms",
            challenger=challenger.latency_ms,
            champion=champion.latency_ms if champion else None,
            rule=f"at most {gates.max_latency_ms:g} ms for one sample",
            passed=challenger.latency_ms <= gates.max_latency_ms,
        )
    yield Check(
        name="onnx_deviation",
        challenger=challenger.onnx_deviation,
        champion=champion.onnx_deviation if champion else None,
        rule=f"at most {gates.max_onnx_deviation:g} of the output's range",
        passed=challenger.onnx_deviation <= gates.max_onnx_deviation,
    )


def _missing(metric: str, figures: Figures) -> str:
    """What to say where there is no finite figure; empty where there is one."""
    if metric not in figures.metrics:
        return f"the evaluation gives no such metric; it gives {', '.join(sorted(figures.metrics))}"
    value = figures.metrics[metric]
    return "" if value is not None and math.isfinite(value) else "the challenger's figure is not a finite number"


def _judge_metric(gate: MetricGate, ours: float | None, theirs: float | None, champion: Figures | None) -> Check:
    sign = 1.0 if gate.direction == "min" else -1.0
    words = "at most" if gate.direction == "min" else "at least"
    rules, passed = [], True
    if ours is None or not math.isfinite(ours):
        return Check(
            name=gate.metric,
            challenger=None,
            champion=theirs,
            rule="the challenger's figure is missing or not a finite number",
            passed=False,
        )
    if gate.limit is not None:
        rules.append(f"{words} {figure(gate.limit)}")
        passed &= sign * ours <= sign * gate.limit
    if gate.allowed_regression is not None and champion is not None:
        if theirs is None or not math.isfinite(theirs):
            rules.append("not compared: the champion's figure is not a finite number")
        else:
            bound = theirs + sign * gate.allowed_regression * abs(theirs)
            allowed = f"allowed {gate.allowed_regression:.0%} worse"
            rules.append(f"{words} {figure(bound)} (champion {figure(theirs)}, {allowed})")
            passed &= sign * ours <= sign * bound
    rule = " and ".join(rules) or "no champion to compare with"
    return Check(name=gate.metric, challenger=ours, champion=theirs, rule=rule, passed=passed)
