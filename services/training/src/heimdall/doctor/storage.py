"""The object store: each bucket can be used, and nothing beyond them can be reached with these keys."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from heimdall.doctor.findings import Finding
from heimdall.doctor.tracking import clock
from heimdall.settings import Settings

DENIED = {"AccessDenied", "403", "Forbidden"}
WRONG_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch"}
MISSING = {"NoSuchBucket", "404"}
MOST_FOREIGN_BUCKETS = 5


def check_storage(settings: Settings, buckets: Sequence[str]) -> Iterator[Finding]:
    """Rights on ``buckets``, and refusal of every other; without buckets and endpoint there is nothing to check."""
    if not buckets:
        said = "no bucket named (--bucket, HEIMDALL_BUCKETS)"
        yield Finding(name="object store", status="skipped", said=said)
        return
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(connect_timeout=5, read_timeout=15, retries={"total_max_attempts": 2})
    options: dict[str, Any] = dict(settings.s3_options())
    client = boto3.client("s3", config=config, **options)
    place = settings.mlflow_s3_endpoint_url or "AWS"
    try:
        date = ""
        for bucket in buckets:
            finding, date = _check_bucket(client, bucket)
            yield finding
        yield from clock(date, "object store")
        yield _check_limits(client, buckets, is_aws=not settings.mlflow_s3_endpoint_url)
    except BotoCoreError as error:
        yield Finding(
            name="object store",
            status="failed",
            said=f"{place} cannot be used: {error}",
            mend="start it (make up), or check MLFLOW_S3_ENDPOINT_URL and the S3 keys",
        )


def _check_bucket(client: Any, bucket: str) -> tuple[Finding, str]:
    """List, write, read and delete an object; also the ``Date`` of the reply."""
    from botocore.exceptions import ClientError

    name, key = f"bucket {bucket}", f".heimdall-doctor/{secrets.token_hex(8)}"
    step = "list"
    try:
        client.list_objects_v2(Bucket=bucket, Prefix=key)  # first: some servers make a missing bucket on a write
        step = "write to"
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
        step = "read from"
        reply = client.get_object(Bucket=bucket, Key=key)
        is_same = reply["Body"].read() == key.encode()
        step = "delete from"
        client.delete_object(Bucket=bucket, Key=key)
    except ClientError as error:
        code = str(error.response["Error"].get("Code", ""))
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return Finding(name=name, status="failed", **_refusal(code, step, error)), str(headers.get("date", ""))
    date = str(reply["ResponseMetadata"]["HTTPHeaders"].get("date", ""))
    if not is_same:
        mend = "check the disk of the object store"
        return Finding(name=name, status="failed", said="gives back other bytes than were written", mend=mend), date
    return Finding(name=name, status="ok", said="list, write, read, delete"), date


def _refusal(code: str, step: str, error: Exception) -> dict[str, str]:
    if code in MISSING:
        return {"said": "is not there", "mend": "make it: docker compose up minio-init (or ask who owns the store)"}
    if code in WRONG_KEYS:
        mend = "set MLFLOW_S3_ACCESS_KEY_ID and MLFLOW_S3_SECRET_ACCESS_KEY; docker compose up minio-init renews them"
        return {"said": "the store does not know these keys", "mend": mend}
    if code in DENIED:
        mend = "give the key's user rights on this bucket: docker compose up minio-init"
        return {"said": f"these keys may not {step} it", "mend": mend}
    if code == "RequestTimeTooSkewed":
        return {"said": "the store refuses our clock", "mend": "set the clock (NTP) on both machines"}
    return {"said": f"cannot {step} it: {error}", "mend": "see the store's log (docker compose logs minio)"}


def _check_limits(client: Any, buckets: Sequence[str], *, is_aws: bool) -> Finding:
    """Whether the keys reach further than they should. A name nobody has must be refused, not merely missing."""
    open_buckets = [bucket for bucket in _foreign_buckets(client, buckets) if _reach(client, bucket) == "open"]
    mend = "give training a user limited to its buckets, as services/minio/init.sh does"
    if open_buckets:
        said = f"these keys reach other buckets too: {', '.join(open_buckets)}"
        return Finding(name="other buckets", status="failed", said=said, mend=mend)
    if not is_aws and _reach(client, f"heimdall-doctor-{secrets.token_hex(6)}") == "missing":
        # AWS answers "missing" to everybody, others only to who may look everywhere
        said = "these keys may look into every bucket there will be"
        return Finding(name="other buckets", status="failed", said=said, mend=mend)
    return Finding(name="other buckets", status="ok", said="are refused, as they should be")


def _foreign_buckets(client: Any, buckets: Sequence[str]) -> list[str]:
    from botocore.exceptions import ClientError

    try:
        names = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    except ClientError:
        return []
    return [name for name in names if name not in buckets][:MOST_FOREIGN_BUCKETS]


def _reach(client: Any, bucket: str) -> str:
    from botocore.exceptions import ClientError

    try:
        client.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        return "missing" if str(error.response["Error"].get("Code", "")) in MISSING else "refused"
    return "open"
