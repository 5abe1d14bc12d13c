"""The servers that all integration tests stand on."""

from __future__ import annotations

from typing import Any


def test_each_database_is_fresh(make_database: Any, postgres: Any) -> None:
    first, second = make_database(), make_database()
    assert first != second
    name = first.rsplit("/", 1)[1]
    assert postgres.execute("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'", name) == [
        (0,)
    ]


def test_s3_keeps_what_it_is_given(s3: Any) -> None:
    bucket = s3.make_bucket()
    s3.client().put_object(Bucket=bucket, Key="a/b", Body=b"kept")
    assert s3.client().get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"kept"


def test_mlflow_server_answers(mlflow_server: Any) -> None:
    assert mlflow_server.answers()
    assert mlflow_server.artifact_root.startswith("s3://")
