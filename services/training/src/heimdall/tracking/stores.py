"""Where a run keeps its artifacts, as the courier writes there: S3 directly, a folder, or through MLflow's client."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from heimdall.settings import Settings
from heimdall.tracking.sinks import PermanentError

PART_BYTES = 16 << 20
UPLOAD_THREADS = 8


class ArtifactStore(Protocol):
    """One run's artifacts. Destinations are paths below its root."""

    def upload(self, path: Path, destination: str) -> None:
        """Store a file, whole or not at all."""

    def copy(self, source: str, destination: str) -> bool:
        """Store again what is there as ``source`` without sending it; False where that is impossible."""

    def download(self, source: str, folder: Path) -> Path:
        """Fetch one artifact into ``folder``."""

    def close(self) -> None:
        """Let go of connections."""


def open_store(root: str, settings: Settings) -> ArtifactStore:
    """The store behind a run's artifact URI."""
    parsed = urlparse(root)
    if parsed.scheme == "s3":
        return S3Store(parsed.netloc, parsed.path.strip("/"), settings)
    if parsed.scheme in {"", "file"}:
        return FolderStore(Path(unquote(parsed.path)))
    return MLflowStore(root)


class S3Store:
    """Multipart uploads straight to S3, several parts at once, each with a checksum that the server verifies."""

    def __init__(self, bucket: str, prefix: str, settings: Settings) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self._bucket, self._prefix = bucket, prefix
        options: dict[str, Any] = dict(settings.s3_options())
        config = Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 2, "mode": "standard"})
        self._client = boto3.client("s3", config=config, **options)
        self._transfer = TransferConfig(
            multipart_threshold=2 * PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=UPLOAD_THREADS
        )
        self._abort_interrupted()

    def upload(self, path: Path, destination: str) -> None:
        """See :class:`ArtifactStore`. An upload that fails is aborted and leaves no parts."""
        self._client.upload_file(
            str(path),
            self._bucket,
            self._key(destination),
            Config=self._transfer,
            ExtraArgs={"ChecksumAlgorithm": "CRC32"},
        )

    def copy(self, source: str, destination: str) -> bool:
        """See :class:`ArtifactStore`."""
        origin = {"Bucket": self._bucket, "Key": self._key(source)}
        self._client.copy(origin, self._bucket, self._key(destination), Config=self._transfer)
        return True

    def download(self, source: str, folder: Path) -> Path:
        """See :class:`ArtifactStore`."""
        target = folder / Path(source).name
        target.write_bytes(self._client.get_object(Bucket=self._bucket, Key=self._key(source))["Body"].read())
        return target

    def close(self) -> None:
        """See :class:`ArtifactStore`."""
        self._client.close()

    def _key(self, destination: str) -> str:
        return f"{self._prefix}/{destination}" if self._prefix else destination

    def _abort_interrupted(self) -> None:
        """Remove the parts of uploads that died with an earlier courier: only it uploads below this run's prefix."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=f"{self._prefix}/")
            for upload in found.get("Uploads", []):
                if upload["Key"].startswith(f"{self._prefix}/"):
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
        except (BotoCoreError, ClientError):
            return  # not allowed to list, or not reachable: the bucket's own life-cycle rule clears them


class FolderStore:
    """Artifacts in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def upload(self, path: Path, destination: str) -> None:
        """See :class:`ArtifactStore`. A reader sees the old file or the new one, never a part."""
        target = self._root / destination
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{secrets.token_hex(4)}.part")
        try:
            shutil.copyfile(path, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def copy(self, source: str, destination: str) -> bool:
        """See :class:`ArtifactStore`."""
        self.upload(self._root / source, destination)
        return True

    def download(self, source: str, folder: Path) -> Path:
        """See :class:`ArtifactStore`."""
        return Path(shutil.copyfile(self._root / source, folder / Path(source).name))

    def close(self) -> None:
        """See :class:`ArtifactStore`."""


class MLflowStore:
    """Whatever else MLflow can write to, ``mlflow-artifacts:`` (through the server) before all."""

    def __init__(self, root: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._repository: Any = get_artifact_repository(root)

    def upload(self, path: Path, destination: str) -> None:
        """See :class:`ArtifactStore`."""
        if path.name != Path(destination).name:
            raise PermanentError(f"{path.name} cannot be stored under another name")
        self._repository.log_artifact(str(path), os.path.dirname(destination) or None)  # noqa: PTH120 - a URI path

    def copy(self, source: str, destination: str) -> bool:
        """See :class:`ArtifactStore`."""
        del source, destination
        return False

    def download(self, source: str, folder: Path) -> Path:
        """See :class:`ArtifactStore`."""
        return Path(self._repository.download_artifacts(source, str(folder)))

    def close(self) -> None:
        """See :class:`ArtifactStore`."""
