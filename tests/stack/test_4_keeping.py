"""Passwords for people, and a backup that was really put back."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import compose
import pytest

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]


def status(stack: compose.Stack, account: tuple[str, str] | None) -> int:
    try:
        stack.api("experiments/search?max_results=1", account=account)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def test_with_authentication_on_nobody_enters_without_a_password(stack: compose.Stack) -> None:
    settings = stack.settings
    stack.compose("up", "--detach", "--no-deps", "--wait", "mlflow", MLFLOW_AUTH="true")
    try:
        admin = (settings["MLFLOW_AUTH_ADMIN_USERNAME"], settings["MLFLOW_AUTH_ADMIN_PASSWORD"])
        trainer = (settings["MLFLOW_TRACKING_USERNAME"], settings["MLFLOW_TRACKING_PASSWORD"])
        assert status(stack, None) == 401
        assert status(stack, ("admin", "password1234")) == 401
        assert status(stack, admin) == 200
        assert status(stack, trainer) == 200
        words = ("heimdall", "train", "localization", "--config", "examples/quick.toml", "--epochs", "1")
        stack.run(*words, "--run-name", "with-password", "--output-dir", "outputs/auth")
        assert stack.run("heimdall", "doctor").returncode == 0
        with pytest.raises(urllib.error.HTTPError, match="403"):
            stack.api("users/create", {"username": "mallory", "password": "x" * 16}, account=trainer)
        stack.api("users/create", {"username": "ada", "password": "x" * 16}, account=admin)
        ada = ("ada", "x" * 16)
        assert status(stack, ada) == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            stack.api("experiments/update", {"experiment_id": "1", "new_name": "mine"}, account=ada)
    finally:
        stack.compose("up", "--detach", "--no-deps", "--wait", "mlflow")
    assert "with-password" in [run["info"]["run_name"] for run in stack.runs()]


@pytest.mark.parametrize(
    ("name", "value"),
    [("MLFLOW_AUTH_ADMIN_PASSWORD", "short"), ("MLFLOW_TRACKING_PASSWORD", ""), ("MLFLOW_AUTH", "yes")],
)
def test_a_weak_or_missing_password_is_refused_by_name(stack: compose.Stack, name: str, value: str) -> None:
    settings = {"MLFLOW_AUTH": "true", name: value}
    ended = stack.compose("run", "--rm", "--no-deps", "-T", "mlflow", check=False, **settings)
    assert ended.returncode == 1
    assert name in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_backup_goes_back_into_an_empty_stack(stack: compose.Stack, tmp_path: Path) -> None:
    kept = {run["info"]["run_id"]: run for run in stack.runs()}
    assert kept
    objects = objects_of(stack)
    ended = stack.command("scripts/backup", str(tmp_path / "backup"))
    assert "holds database and buckets" in ended.stderr

    refused = stack.command("scripts/restore", str(tmp_path / "backup"), check=False)
    assert refused.returncode == 2
    assert "none of them was touched" in refused.stderr
    assert {run["info"]["run_id"] for run in stack.runs()} == set(kept)

    stack.down("--volumes")
    stack.command("scripts/restore", str(tmp_path / "backup"))
    assert facts(stack.runs()) == facts(list(kept.values()))
    assert objects_of(stack) == objects
    versions = stack.api("registered-models/search")["registered_models"]
    assert versions[0]["name"] == compose.EXPERIMENT


def test_a_damaged_backup_is_refused_before_anything_is_changed(stack: compose.Stack, tmp_path: Path) -> None:
    stack.command("scripts/backup", str(tmp_path / "backup"))
    with (tmp_path / "backup" / "database.dump").open("ab") as file:
        file.write(b"x")
    ended = stack.command("scripts/restore", str(tmp_path / "backup"), check=False)
    assert ended.returncode == 65
    assert "nothing was changed" in ended.stderr


def facts(runs: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Every parameter, metric and tag of every run; the database promises no order of them."""
    return {
        run["info"]["run_id"]: {f"{kind} {item}" for kind, items in run["data"].items() for item in items}
        for run in runs
    }


def objects_of(stack: compose.Stack) -> dict[str, int]:
    pages = stack.s3().get_paginator("list_objects_v2").paginate(Bucket="heimdall-mlflow")
    return {item["Key"]: item["Size"] for page in pages for item in page["Contents"]}
