"""Large files on their way to a real S3 server: in parts, checked, and without leftovers when a courier dies."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from heimdall.settings import Settings
from heimdall.tracking.courier import deliver_run, start_courier
from heimdall.tracking.cursor import Cursor, is_delivered
from heimdall.tracking.journal import JournalWriter
from heimdall.tracking.locks import holder
from heimdall.tracking.mlflow_sink import translated
from heimdall.tracking.sinks import TransientError
from heimdall.tracking.stores import PART_BYTES, S3Store

pytestmark = pytest.mark.xdist_group("servers")


@pytest.fixture
def settings(mlflow_server: Any, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in {**s3.environment(), "MLFLOW_TRACKING_URI": mlflow_server.url}.items():
        monkeypatch.setenv(name, value)
    return Settings()


def large_file(path: Path, parts: float) -> Path:
    path.write_bytes(random.Random(0).randbytes(1 << 20) * int(parts * PART_BYTES / (1 << 20)))
    return path


def uploads(s3: Any, bucket: str, prefix: str = "") -> list[str]:
    found = s3.client().list_multipart_uploads(Bucket=bucket, Prefix=prefix)
    return [upload["Key"] for upload in found.get("Uploads", [])]


def test_a_large_file_goes_in_parts_and_leaves_other_runs_alone(settings: Settings, s3: Any, tmp_path: Path) -> None:
    bucket, client = s3.make_bucket(), s3.client()
    for key in ("run/a/model.bin", "run/b/model.bin"):  # as couriers that were killed leave them
        begun = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.upload_part(Bucket=bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * 100)
    store = S3Store(bucket, "run/a", settings)
    assert uploads(s3, bucket) == ["run/b/model.bin"]
    file = large_file(tmp_path / "model.bin", 3.5)
    store.upload(file, "model.bin")
    store.close()
    stored = client.get_object(Bucket=bucket, Key="run/a/model.bin")
    assert hashlib.sha256(stored["Body"].read()).digest() == hashlib.sha256(file.read_bytes()).digest()
    assert stored["ETag"].strip('"').endswith("-4"), "four parts"


def test_a_byte_that_changes_on_the_way_is_refused_by_the_server(settings: Settings, s3: Any, tmp_path: Path) -> None:
    import proxy

    bucket = s3.make_bucket()
    line = proxy.Proxy(int(s3.endpoint.rpartition(":")[2]))
    there = settings.model_copy(update={"mlflow_s3_endpoint_url": line.url})
    for parts in (0.5, 2.5):  # in one piece, and in parts
        file = large_file(tmp_path / "model.bin", parts)
        line.set("flip")
        store = S3Store(bucket, "run", there)
        with pytest.raises(TransientError), translated():
            store.upload(file, "model.bin")
        assert "Contents" not in s3.client().list_objects_v2(Bucket=bucket)
        line.set("pass")
        store.upload(file, "model.bin")
        stored = s3.client().get_object(Bucket=bucket, Key="run/model.bin")["Body"].read()
        assert hashlib.sha256(stored).digest() == hashlib.sha256(file.read_bytes()).digest()
        s3.client().delete_object(Bucket=bucket, Key="run/model.bin")
        assert uploads(s3, bucket) == []
        store.close()
    line.stop()


@pytest.mark.fault
def test_an_upload_cut_short_by_a_killed_courier_begins_anew_and_leaves_no_parts(
    settings: Settings, s3: Any, mlflow_server: Any, tmp_path: Path
) -> None:
    bucket = mlflow_server.artifact_root.removeprefix("s3://").partition("/")[0]
    folder = settings.journal_dir / f"hd-{tmp_path.name}"
    journal = JournalWriter(folder, {"run_key": folder.name, "experiment": "uploads"}, on_problem=print)
    file = large_file(tmp_path / "model.bin", 16)
    journal.stage(file, "model.bin")
    journal.append("e", "FINISHED", "")
    journal.close()
    start_courier(folder, settings)
    deadline = time.monotonic() + 120
    while not uploads(s3, bucket):
        assert not is_delivered(folder), "the file was too small to catch its courier"
        assert time.monotonic() < deadline, Cursor.load(folder)
        time.sleep(0.005)
    os.kill(holder(folder / "courier.lock") or 0, signal.SIGKILL)
    assert len(Cursor.load(folder).pending) == 1
    assert len(uploads(s3, bucket)) == 1, "its parts lie there, invisible"
    assert deliver_run(folder, settings, lambda idle: idle > 60)
    assert uploads(s3, bucket) == []
    run_id = Cursor.load(folder).run_id
    (key,) = (
        item["Key"]
        for item in s3.client().list_objects_v2(Bucket=bucket)["Contents"]
        if item["Key"].endswith(f"{run_id}/artifacts/model.bin")
    )
    with file.open("rb") as original:
        expected = hashlib.file_digest(original, "sha256").hexdigest()
    stored = s3.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    assert hashlib.sha256(stored).hexdigest() == expected
