from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest

from heimdall.errors import DataError, ServiceError
from heimdall.tasks.localization.config import LocalizationConfig
from heimdall.tasks.localization.dataset import open_dataset
from heimdall.tasks.localization.fetch import fetch_dataset
from heimdall.tasks.localization.task import LocalizationTask

SECRET = "not-the-secret-at-all"


@pytest.fixture
def client(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("MLFLOW_S3_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("MLFLOW_S3_SECRET_ACCESS_KEY", s3.secret_key)
    return boto3.client(
        "s3", endpoint_url=s3.endpoint, aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key,
        region_name="us-east-1",
    )  # fmt: skip


@pytest.fixture
def source(client: Any, s3: Any, own_recordings: Path) -> str:
    bucket = s3.make_bucket()
    for path in own_recordings.iterdir():
        client.upload_file(str(path), bucket, f"sets/one/{path.name}")
    client.put_object(Bucket=bucket, Key="sets/one-more/other.txt", Body=b"of another set")
    return f"s3://{bucket}/sets/one"


def test_a_data_set_in_a_bucket_is_the_same_data_set(source: str, own_recordings: Path, tmp_path: Path) -> None:
    config = LocalizationTask().prepare(LocalizationConfig(backbone="COMPACT", data=source), tmp_path / "cache")
    assert open_dataset(Path(config.data)).digest == open_dataset(own_recordings).digest


def test_only_what_is_missing_or_changed_is_fetched_again(source: str, client: Any, tmp_path: Path) -> None:
    folder = fetch_dataset(source, tmp_path)
    kept, lost, changed = (folder / f"session-0000{index}.sigmf-meta" for index in range(3))
    times = kept.stat().st_mtime_ns
    lost.unlink()
    bucket = source.split("/")[2]
    client.put_object(Bucket=bucket, Key=f"sets/one/{changed.name}", Body=changed.read_bytes().swapcase())
    client.delete_object(Bucket=bucket, Key="sets/one/session-00005.sigmf-meta")
    fetch_dataset(source, tmp_path)
    assert kept.stat().st_mtime_ns == times
    assert lost.exists()
    assert b"CORE:DATATYPE" in changed.read_bytes()  # same size, other content
    assert not (folder / "session-00005.sigmf-meta").exists()
    assert not (folder / "other.txt").exists()


@pytest.mark.parametrize("variable", ["MLFLOW_S3_SECRET_ACCESS_KEY", "MLFLOW_S3_ACCESS_KEY_ID"])
def test_wrong_keys_are_a_service_error_without_the_keys(
    variable: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, SECRET)
    with pytest.raises(ServiceError, match="refuses access") as caught:
        fetch_dataset(source, tmp_path)
    assert caught.value.exit_code == 69
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_bucket_and_an_empty_prefix_are_data_errors(source: str, tmp_path: Path) -> None:
    bucket = source.split("/")[2]
    with pytest.raises(DataError, match="nothing under"):
        fetch_dataset(f"s3://{bucket}/nowhere", tmp_path)
    with pytest.raises(DataError) as caught:
        fetch_dataset("s3://no-such-bucket-anywhere/set", tmp_path)
    assert caught.value.exit_code == 65


def test_a_store_that_does_not_answer_is_a_service_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_S3_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("MLFLOW_S3_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(ServiceError, match="cannot be reached") as caught:
        fetch_dataset("s3://bucket/set", tmp_path)
    assert SECRET not in str(caught.value)


def test_no_keys_at_all_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.aws of whoever runs this
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match="no keys"):
        fetch_dataset("s3://bucket/set", tmp_path)
