"""Copies whole buckets to and from a tar stream: the half of backup and restore that speaks S3.

python buckets.py save  > buckets.tar     every object of HEIMDALL_BUCKETS, as BUCKET/KEY
python buckets.py load  < buckets.tar     puts them back; the buckets must be there (minio-init makes them)
"""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from typing import Any

import boto3

from heimdall.settings import Settings

SPOOL_BYTES = 64 << 20


def make_client() -> Any:
    options: dict[str, Any] = dict(Settings().s3_options())
    return boto3.client("s3", **options)


def save(client: Any, buckets: list[str]) -> int:
    count = 0
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for bucket in buckets:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                for found in page.get("Contents", []):
                    reply = client.get_object(Bucket=bucket, Key=found["Key"])
                    member = tarfile.TarInfo(f"{bucket}/{found['Key']}")
                    member.size, member.mtime = reply["ContentLength"], int(found["LastModified"].timestamp())
                    member.pax_headers = {"HEIMDALL.content_type": reply.get("ContentType", "")}
                    archive.addfile(member, reply["Body"])
                    count += 1
    return count


def load(client: Any, buckets: list[str]) -> int:
    count = 0
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            bucket, _, key = member.name.partition("/")
            if bucket not in buckets:
                sys.exit(f"buckets: the archive has an object of bucket {bucket!r}, which is not in HEIMDALL_BUCKETS.")
            source = archive.extractfile(member)
            if source is None:
                continue
            extra = {"ContentType": kind} if (kind := member.pax_headers.get("HEIMDALL.content_type")) else {}
            with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as whole:  # uploads need to seek, a stream cannot
                while block := source.read(1 << 20):
                    whole.write(block)
                whole.seek(0)
                client.upload_fileobj(whole, bucket, key, ExtraArgs=extra)
            count += 1
    return count


def main() -> None:
    buckets = os.environ["HEIMDALL_BUCKETS"].split()
    if sys.argv[1:] == ["save"]:
        verb, count = "saved", save(make_client(), buckets)
    elif sys.argv[1:] == ["load"]:
        verb, count = "put back", load(make_client(), buckets)
    else:
        sys.exit(__doc__)
    print(f"buckets: {count} objects {verb}", file=sys.stderr)


if __name__ == "__main__":
    main()
