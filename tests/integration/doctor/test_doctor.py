"""The doctor against real servers: what it says, and with which exit code it ends."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import servers


def doctor(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of ``heimdall doctor``, as its user sees both."""
    ended = subprocess.run(
        [sys.executable, "-m", "heimdall.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HEIMDALL_HOME": str(folder / "home"), "DO_NOT_TRACK": "true", **environment},
        timeout=120,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


NO_SERVER = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # refused at once; not what these tests are about


def line(output: str, name: str) -> str:
    return next(line for line in output.splitlines() if line[9:].startswith(name))


def test_with_nothing_set_the_local_database_and_folder_pass(tmp_path: Path) -> None:
    code, output = doctor(tmp_path)
    assert code == 0, output
    assert line(output, "run").startswith("ok")
    assert line(output, "artifact").startswith("ok")
    assert line(output, "tracking").startswith("ok")


def test_a_server_passes_and_keeps_no_run_of_the_doctor(tmp_path: Path, mlflow_server: Any, s3: Any) -> None:
    from mlflow.tracking import MlflowClient

    code, output = doctor(tmp_path, MLFLOW_TRACKING_URI=mlflow_server.url, **s3.environment())
    assert code == 0, output
    assert line(output, "artifact").startswith("ok")
    assert s3.secret_key not in output
    client = MlflowClient(mlflow_server.url)
    experiment = client.get_experiment_by_name("heimdall-doctor")
    assert experiment is not None
    assert client.search_runs([experiment.experiment_id]) == []


def test_a_server_that_is_not_there_ends_with_69_and_says_where(tmp_path: Path) -> None:
    place = f"http://127.0.0.1:{servers.free_port()}"
    code, output = doctor(tmp_path, MLFLOW_TRACKING_URI=place)
    assert code == 69
    assert line(output, "tracking").startswith("failed")
    assert place in line(output, "tracking")
    assert "make up" in line(output, "tracking")


def test_a_web_server_that_is_not_mlflow_is_told_apart(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code, output = doctor(tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert code == 69
    assert "is not an MLflow server" in line(output, "tracking")


def test_an_artifact_store_that_refuses_is_told_apart_from_the_server(
    tmp_path: Path, mlflow_server: Any, s3: Any
) -> None:
    wrong = s3.environment() | {"MLFLOW_S3_SECRET_ACCESS_KEY": "wrong", "AWS_SECRET_ACCESS_KEY": "wrong"}
    code, output = doctor(tmp_path, MLFLOW_TRACKING_URI=mlflow_server.url, **wrong)
    assert code == 69
    assert line(output, "run").startswith("ok")
    assert line(output, "artifact").startswith("failed")


def test_a_bucket_is_used_and_a_missing_one_named_with_the_mend(tmp_path: Path, s3: Any) -> None:
    bucket = s3.make_bucket()
    code, output = doctor(tmp_path, "--bucket", bucket, "--bucket", "not-there", **s3.environment(), **NO_SERVER)
    assert code == 69
    assert line(output, f"bucket {bucket}").startswith("ok")
    assert line(output, "bucket not-there").startswith("failed")
    assert "minio-init" in line(output, "bucket not-there")
    assert s3.client().list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_keys_of_an_administrator_are_reported(tmp_path: Path, s3: Any) -> None:
    bucket, _ = s3.make_bucket(), s3.make_bucket()
    code, output = doctor(tmp_path, "--bucket", bucket, **s3.environment(), **NO_SERVER)
    assert code == 69
    assert line(output, "other buckets").startswith("failed")
    named = set(line(output, "other buckets").partition("too: ")[2].partition(" ->")[0].split(", "))
    # the server is shared with other tests, and only the first few are named
    kept = {found["Name"] for found in s3.client().list_buckets()["Buckets"]}
    assert named
    assert named <= kept - {bucket}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"MLFLOW_S3_SECRET_ACCESS_KEY": "wrong"}, "does not know these keys"),
        ({"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be used"),
    ],
)
def test_wrong_keys_and_a_store_that_is_not_there_are_said_apart(
    tmp_path: Path, s3: Any, change: dict[str, str], said: str
) -> None:
    code, output = doctor(tmp_path, "--bucket", s3.make_bucket(), **(NO_SERVER | s3.environment() | change))
    assert code == 69
    assert said in output
    assert s3.secret_key not in output
