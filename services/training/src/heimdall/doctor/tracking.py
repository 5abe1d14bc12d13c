"""The tracking server: does it answer a client, is its clock right, does a run and an artifact come back as written."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from heimdall.doctor.findings import Finding
from heimdall.settings import Settings

EXPERIMENT = "heimdall-doctor"
QUESTION = "/api/2.0/mlflow/experiments/search?max_results=1"
PATIENCE_SECONDS = 10.0
SKEW_WARNING_SECONDS = 10.0
SKEW_FAILURE_SECONDS = 900.0  # S3 servers refuse signatures older than 15 minutes


def check_tracking(settings: Settings) -> Iterator[Finding]:
    """The tracking API as a client uses it; goes on to write only where it answers."""
    if settings.tracking_uri.startswith(("http://", "https://")):
        answer = _ask_server(settings)
        yield from answer
        if any(finding.status == "failed" for finding in answer):
            return
    else:
        yield Finding(name="tracking", status="ok", said=f"no server set: {settings.tracking_place} stands in")
    yield from check_run(settings)


def _ask_server(settings: Settings) -> list[Finding]:
    place = settings.tracking_place
    request = urllib.request.Request(settings.tracking_uri.rstrip("/") + QUESTION)  # noqa: S310 - http(s) only, see above
    if settings.mlflow_tracking_username:
        account = f"{settings.mlflow_tracking_username}:{settings.mlflow_tracking_password.get_secret_value()}"
        request.add_header("Authorization", "Basic " + b64encode(account.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as reply:  # noqa: S310
            is_ours = "json" in reply.headers.get("Content-Type", "")
            date = reply.headers.get("Date", "")
            reply.read()
    except urllib.error.HTTPError as error:
        said, mend = _refusal(error.code, error.read(500).decode(errors="replace"))
        return [Finding(name="tracking", status="failed", said=f"{place} {said}", mend=mend)]
    except OSError as error:
        reason = getattr(error, "reason", error)
        return [
            Finding(
                name="tracking",
                status="failed",
                said=f"{place} does not answer: {reason}",
                mend="start it (make up), or set MLFLOW_TRACKING_URI to where it is",
            )
        ]
    if not is_ours:
        mend = "set MLFLOW_TRACKING_URI to an MLflow server"
        return [Finding(name="tracking", status="failed", said=f"{place} is not an MLflow server", mend=mend)]
    return [Finding(name="tracking", status="ok", said=f"{place} answers"), *clock(date, "tracking server")]


def _refusal(code: int, body: str) -> tuple[str, str]:
    if code == 403 and "host" in body.lower():
        return "refuses the host name that we call it by", "add it to MLFLOW_EXTRA_HOSTS (mlflow --allowed-hosts)"
    if code == 401:
        return (
            "wants a user name and password, or others than ours",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    if code == 403:
        return "forbids us to look at experiments", "ask its administrator for READ permission"
    if code == 404:
        return "is not an MLflow server (404)", "set MLFLOW_TRACKING_URI to one"
    return f"answers with error {code}", "see its log (docker compose logs mlflow)"


def clock(date: str, whose: str) -> Iterator[Finding]:
    """Compare our clock with the ``Date`` header of a reply."""
    if not date:
        return
    skew = abs(time.time() - parsedate_to_datetime(date).timestamp())
    said = f"within {max(skew, 1.0):.0f} s of the {whose}'s"  # the header counts whole seconds
    mend = "set the clock (NTP) on both machines: times of metrics and S3 signatures depend on it"
    if skew > SKEW_FAILURE_SECONDS:
        yield Finding(name="clock", status="failed", said=said, mend=mend)
    elif skew > SKEW_WARNING_SECONDS:
        yield Finding(name="clock", status="warning", said=said, mend=mend)
    else:
        yield Finding(name="clock", status="ok", said=said)


def check_run(settings: Settings) -> Iterator[Finding]:
    """Write a run and an artifact, read both back, delete the run."""
    from heimdall.tracking.mlflow_sink import make_client

    word = secrets.token_hex(8)
    # the run is deleted again: nobody needs its address
    os.environ.update(MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true", MLFLOW_LOGGING_LEVEL="WARNING")
    try:
        client = make_client(settings)
        run = _write_run(client, settings, word)
    except Exception as error:  # noqa: BLE001 - MLflow raises anything; each is the same finding
        yield Finding(
            name="run", status="failed", said=f"cannot be written: {_first_line(error)}", mend=_run_mend(str(error))
        )
        return
    try:
        data = client.get_run(run.info.run_id).data
        if data.params.get("word") == word and data.metrics.get("answer") == 42.0:
            yield Finding(name="run", status="ok", said=f"written to experiment {EXPERIMENT} and read back")
        else:
            mend = "look for a second writer or a broken replica behind the server"
            yield Finding(name="run", status="failed", said="comes back other than it was written", mend=mend)
        yield _check_artifact(settings, run.info.artifact_uri, word)
    finally:
        client.delete_run(run.info.run_id)


def _write_run(client: Any, settings: Settings, word: str) -> Any:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        identifier = client.create_experiment(EXPERIMENT, artifact_location=settings.artifact_root)
    else:
        identifier = experiment.experiment_id
    run = client.create_run(identifier, run_name="doctor")
    client.log_param(run.info.run_id, "word", word)
    client.log_metric(run.info.run_id, "answer", 42.0)
    client.set_terminated(run.info.run_id)
    return run


def _check_artifact(settings: Settings, root: str, word: str) -> Finding:
    from heimdall.tracking.stores import open_store

    try:
        store = open_store(root, settings)
        with tempfile.TemporaryDirectory() as name:
            source, target = Path(name) / "doctor.txt", Path(name) / "back"
            source.write_text(word, encoding="utf-8")
            target.mkdir()
            store.upload(source, "doctor.txt")
            came_back = store.download("doctor.txt", target).read_text(encoding="utf-8")
        store.close()
    except Exception as error:  # noqa: BLE001 - whatever the store raises
        return Finding(
            name="artifact",
            status="failed",
            said=f"cannot be written to {root}: {_first_line(error)}",
            mend="check MLFLOW_S3_ENDPOINT_URL, the S3 keys and the bucket (docker compose up minio-init makes it)",
        )
    if came_back != word:
        mend = "check the disk of the artifact store"
        return Finding(name="artifact", status="failed", said="comes back other than it was written", mend=mend)
    return Finding(name="artifact", status="ok", said=f"written to {root.split('/artifacts')[0]} and read back")


def _run_mend(reason: str) -> str:
    if "out-of-date database schema" in reason:
        return "make a backup, then upgrade the database (docs/how-to/upgrade.md)"
    if "PERMISSION_DENIED" in reason or "Permission denied" in reason:
        return "ask the administrator for EDIT permission"
    return "see the tracking server's log (docker compose logs mlflow), or check the database in MLFLOW_TRACKING_URI"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
