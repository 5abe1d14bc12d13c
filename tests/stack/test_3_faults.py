"""What goes wrong on a machine: processes die during a run, a password changes, a bucket or the space is gone."""

from __future__ import annotations

import itertools
from typing import Any

import compose
import pytest

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]

ENDLESS = {"TEST_EPOCHS": "100000"}


def newest(stack: compose.Stack) -> dict[str, Any]:
    return stack.runs()[0]


def grows(stack: compose.Stack, run_id: str) -> None:
    """Wait until MLflow has later epochs of the run than it has now."""
    before = len(stack.history(run_id, "val/loss"))
    compose.wait_for(lambda: len(stack.history(run_id, "val/loss")) > before + 2, "the run goes on in MLflow", 240)


def stop(stack: compose.Stack) -> None:
    """``docker compose stop training``: a last checkpoint, and the exit code of a process that was asked to end."""
    stack.compose("stop", "training")
    assert stack.state("training")["State"]["ExitCode"] == 143, stack.compose("logs", "training").stdout[-3000:]


def test_a_run_outlives_the_death_of_every_service_and_of_itself(stack: compose.Stack) -> None:
    before = {run["info"]["run_id"] for run in stack.runs()}
    stack.compose("up", "--detach", "--wait", **ENDLESS)
    compose.wait_for(lambda: newest(stack)["info"]["run_id"] not in before, "the run begins")
    identifier = newest(stack)["info"]["run_id"]
    grows(stack, identifier)

    for service in ("mlflow", "postgres", "minio"):
        started = stack.state("training")["State"]["StartedAt"]
        stack.kill(service)
        compose.wait_for(lambda name=service: stack.is_healthy(name), f"{service} is healthy again", 240)
        compose.wait_for(lambda: stack.is_healthy("mlflow"), "MLflow is healthy again", 240)
        grows(stack, identifier)
        assert stack.state("training")["State"]["StartedAt"] == started, f"training noticed the death of {service}"

    stack.kill("training")
    grows(stack, identifier)
    assert {run["info"]["run_id"] for run in stack.runs()} - before == {identifier}, "the same run goes on"

    stop(stack)
    stack.compose("up", "--detach", "training", **ENDLESS)
    grows(stack, identifier)
    assert {run["info"]["run_id"] for run in stack.runs()} - before == {identifier}, "stopped by hand, it goes on too"
    stop(stack)
    stack.run("heimdall", "sync")
    steps = sorted(point["step"] for point in stack.history(identifier, "val/loss"))
    assert len(steps) == len(set(steps)), "no epoch twice"
    assert len({later - earlier for earlier, later in itertools.pairwise(steps)}) == 1, "no epoch missing"


def test_what_died_with_the_tracking_server_down_is_delivered_later(stack: compose.Stack) -> None:
    stack.compose("stop", "mlflow")
    options = ("run", "--rm", "--no-deps", "-T", "-e", "HEIMDALL_END_WAIT_SECONDS=3", "training")
    words = ("heimdall", "train", "localization", "--config", "examples/quick.toml", "--output-dir")
    stack.compose(*options, *words, "outputs/alone", "--run-name", "nobody-listens")
    stack.compose("up", "--detach", "--wait", "mlflow")
    assert "nobody-listens" not in {run["info"]["run_name"] for run in stack.runs()}
    # nobody calls sync: the next container delivers what the one that is gone has left on the volume
    stack.compose(*options, *words, "outputs/later", "--run-name", "somebody-listens")
    (run,) = [run for run in stack.runs() if run["info"]["run_name"] == "nobody-listens"]
    assert len(stack.history(run["info"]["run_id"], "val/loss")) == 3
    assert run["info"]["status"] == "FINISHED"


def test_a_bucket_that_is_gone_is_named_and_made_again(stack: compose.Stack) -> None:
    stack.s3(root=True).delete_bucket(Bucket="heimdall-datasets")
    ended = stack.run("heimdall", "doctor", check=False)
    assert ended.returncode == 69
    (line,) = [line for line in ended.stdout.splitlines() if "bucket heimdall-datasets" in line]
    assert line.startswith("failed")
    assert "minio-init" in line
    stack.compose("up", "--no-deps", "--force-recreate", "minio-init")
    assert stack.run("heimdall", "doctor").returncode == 0


def test_a_full_volume_ends_a_run_with_74_and_the_place(stack: compose.Stack, tmp_path: Any) -> None:
    small = tmp_path / "small.yml"
    small.write_text(
        "services: {training: {volumes: ['small-outputs:/app/outputs']}}\n"
        "volumes: {small-outputs: {driver_opts: {type: tmpfs, device: tmpfs, o: 'size=256k,uid=10001'}}}\n"
    )
    words = ("heimdall", "train", "localization", "--config", "examples/quick.toml", "--output-dir", "outputs/full")
    files = f"{stack.environment['COMPOSE_FILE']}:{small}"
    ended = stack.run(*words, "--logger", "none", check=False, COMPOSE_FILE=files)
    assert ended.returncode == 74, ended.stderr[-2000:]
    assert "no space left" in ended.stderr.lower()
    assert "outputs/full" in ended.stderr


def test_another_password_than_the_volume_was_made_with_is_explained(stack: compose.Stack) -> None:
    ended = stack.command("scripts/up", "mlflow", check=False, POSTGRES_PASSWORD="not-the-one-of-the-volume")
    try:
        assert ended.returncode == 69
        assert "PostgreSQL refuses POSTGRES_PASSWORD" in ended.stderr
        assert "Put the old password back" in ended.stderr
    finally:
        stack.compose("up", "--detach", "--wait", "mlflow")
    assert stack.runs()


OLD_SCHEMA = """
import sys; sys.path.insert(0, "/app")
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from sqlalchemy import create_engine, text
from start import database_url
url = database_url()
config = _get_alembic_config(url.render_as_string(hide_password=False))
revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
engine = create_engine(url)
Base.metadata.create_all(engine)
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, revisions[5])
with engine.begin() as connection:
    connection.execute(text("INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
                            "VALUES (7, 'from-before', 's3://heimdall-mlflow/7', 'active')"))
print(revisions[0])
"""


def test_a_server_meets_an_older_database_only_with_permission_and_a_newer_one_never(stack: compose.Stack) -> None:
    def start(*options: str, **environment: str) -> Any:
        words = ("run", "--rm", "--no-deps", "-T", *options)
        return stack.compose(*words, check=False, POSTGRES_DB="old", **environment)

    def sql(statement: str) -> str:
        words = (
            "exec",
            "-T",
            "postgres",
            "psql",
            "-h",
            "127.0.0.1",
            "-U",
            "mlflow",
            "-d",
            "old",
            "-qAt",
            "-c",
            statement,
        )
        return stack.compose(*words, PGPASSWORD=stack.settings["POSTGRES_PASSWORD"]).stdout.strip()

    stack.sql("CREATE DATABASE old")
    made = start("--entrypoint", "python", "mlflow", "-c", OLD_SCHEMA)
    assert made.returncode == 0, made.stderr
    newest_schema = made.stdout.split()[-1]
    old_schema = sql("SELECT version_num FROM alembic_version")
    assert old_schema != newest_schema

    refused = start("mlflow")
    assert refused.returncode == 1
    assert "older schema" in refused.stderr
    assert "scripts/backup" in refused.stderr
    assert sql("SELECT version_num FROM alembic_version") == old_schema

    stack.compose("up", "--detach", "--no-deps", "--wait", "mlflow", POSTGRES_DB="old", MLFLOW_DB_UPGRADE="true")
    assert sql("SELECT version_num FROM alembic_version") == newest_schema
    assert stack.api("experiments/get-by-name?experiment_name=from-before")["experiment"]["experiment_id"] == "7"

    stack.compose("up", "--detach", "--no-deps", "--wait", "mlflow")
    sql("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    refused = start("mlflow", MLFLOW_DB_UPGRADE="true")
    assert refused.returncode == 1
    assert "newer server" in refused.stderr
