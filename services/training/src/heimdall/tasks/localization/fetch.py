"""Where a data set comes from: a local folder, or ``s3://bucket/prefix`` fetched into the cache, file by file."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from heimdall.errors import DataError, OutputError, ServiceError
from heimdall.logs import get
from heimdall.settings import Settings

DOWNLOADS_AT_ONCE = 8
REFUSED = {"403", "401", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken"}
MISSING = {"404", "NoSuchBucket", "NoSuchKey"}


@dataclass(frozen=True)
class Remote:
    """One object of the bucket and where it goes."""

    key: str
    size: int
    etag: str
    path: Path

    @property
    def is_here(self) -> bool:
        """Whether this very version has been fetched whole: the name of the stamp carries its ETag."""
        return self.path.exists() and self.path.stat().st_size == self.size and self._stamp.exists()

    @property
    def _stamp(self) -> Path:
        name = hashlib.sha256(f"{self.key} {self.etag}".encode()).hexdigest()[:24]
        return self.path.parent / ".fetched" / name

    def fetch(self, client: Any, bucket: str) -> None:
        """Download to a temporary name and rename, so that a file that is there is whole."""
        self._stamp.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + f".{os.getpid()}.partial")
        try:
            client.download_file(bucket, self.key, str(partial))
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        self._stamp.touch()


def fetch_dataset(source: str, cache: Path) -> Path:
    """A local folder with the data set at ``source``; what was fetched before is not fetched again.

    Raises :class:`~heimdall.errors.ServiceError` where the store cannot be reached or refuses the keys, and
    :class:`~heimdall.errors.DataError` where there is no such bucket or nothing under the prefix.
    """
    if not source.startswith("s3://"):
        return Path(source).expanduser().absolute()
    place = urlsplit(source)
    bucket, prefix = place.netloc, place.path.strip("/")
    if not bucket:
        raise DataError(f"{source} names no bucket.", mend="Write s3://bucket/prefix.")
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    folder = cache / "fetched" / hashlib.sha256(source.encode()).hexdigest()[:16]
    try:
        client = _client()
        remotes = _list(client, bucket, prefix, folder)
        if not remotes:
            raise DataError(f"There is nothing under {source}.", mend="Check the bucket and the prefix.")
        _remove_others(folder, {remote.path for remote in remotes})
        wanted = [remote for remote in remotes if not remote.is_here]
        if wanted:
            get(__name__).info(
                "fetching data set", source=source, files=len(wanted), already_here=len(remotes) - len(wanted)
            )
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            list(pool.map(lambda remote: remote.fetch(client, bucket), wanted))
    except ClientError as error:
        raise _explained(error, source) from None
    except NoCredentialsError:
        raise ServiceError(
            f"There are no keys for the object store with {source}.",
            mend="Set MLFLOW_S3_ACCESS_KEY_ID and MLFLOW_S3_SECRET_ACCESS_KEY.",
        ) from None
    except BotoCoreError as error:
        raise ServiceError(
            f"The object store with {source} cannot be reached ({type(error).__name__}).",
            mend="Check MLFLOW_S3_ENDPOINT_URL; what was fetched is kept.",
        ) from None
    except OSError as error:
        raise OutputError(f"{source} cannot be kept in {folder}: {error.strerror}.", mend="Make room.") from error
    return folder


def _client() -> Any:
    import boto3
    from botocore.config import Config

    retries = Config(
        retries={"max_attempts": 3, "mode": "standard"},
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=DOWNLOADS_AT_ONCE,
    )
    # a session of its own: the default one remembers the keys of whoever asked first
    return boto3.session.Session().client("s3", config=retries, **Settings().s3_options())


def _list(client: Any, bucket: str, prefix: str, folder: Path) -> list[Remote]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
    remotes = []
    for entry in (entry for page in pages for entry in page.get("Contents", ())):
        name = entry["Key"][len(prefix) :].lstrip("/")
        if name and not name.endswith("/"):
            if ".." in PurePosixPath(name).parts:
                raise DataError(f"s3://{bucket}/{entry['Key']} leads out of its folder.", mend="Rename the object.")
            remotes.append(Remote(entry["Key"], entry["Size"], entry["ETag"], folder / name))
    return remotes


def _remove_others(folder: Path, keep: set[Path]) -> None:
    # An object deleted from the store must not live on in the data set
    for path in folder.rglob("*") if folder.exists() else ():
        if path.is_file() and path not in keep and path.parent.name != ".fetched":
            path.unlink()


def _explained(error: Any, source: str) -> ServiceError | DataError:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    if code in MISSING:
        return DataError(f"There is no {source} ({code}).", mend="Check the bucket and the prefix.")
    if code in REFUSED:
        return ServiceError(
            f"The object store refuses access to {source} ({code}).",
            mend="Check MLFLOW_S3_ACCESS_KEY_ID and MLFLOW_S3_SECRET_ACCESS_KEY.",
        )
    return ServiceError(f"The object store failed on {source} ({code}).", mend="Try again; what was fetched is kept.")
