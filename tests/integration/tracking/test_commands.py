"""status, sync and clean as their user sees them, and no secret in anything that is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heimdall.settings import Settings
from heimdall.tracking.courier import NICENESS
from heimdall.tracking.cursor import Cursor
from heimdall.tracking.journal import JournalWriter
from heimdall.tracking.locks import holder
from heimdall.tracking.tracker import MLflowTracker

HEIMDALL = Path(sys.executable).with_name("heimdall")


def heimdall(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(HEIMDALL), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def journal(root: Path, key: str, *, delivered: bool) -> Path:
    def problem(error: OSError) -> None:
        raise error

    made = JournalWriter(root / key, {"run_key": key, "place": Settings().tracking_place}, on_problem=problem)
    made.append_metrics({"loss": 1.0}, 0)
    made.append("e", "FINISHED", "")
    made.close()
    if delivered:
        size = made.segment.stat().st_size
        cursor = Cursor(run_id="0" * 32, segment=1, offset=size, number=4, done=True, complete=True, status="FINISHED")
        cursor.save(made.folder)
    return made.folder


@pytest.fixture
def root() -> Path:
    return Settings().journal_dir


def test_status_tells_what_waits_and_what_to_do(root: Path, tmp_path: Path) -> None:
    journal(root, "hd-delivered", delivered=True)
    journal(root, "hd-waiting", delivered=False)
    shown = heimdall("status", cwd=tmp_path).stdout
    assert "hd-waiting" in shown
    assert "run `heimdall sync`" in " ".join(shown.split())
    assert "hd-delivered" not in shown
    rows = [json.loads(line) for line in heimdall("status", "--all", "--json", cwd=tmp_path).stdout.splitlines()]
    assert {row["run_key"]: row["delivered"] for row in rows} == {"hd-delivered": True, "hd-waiting": False}


def test_clean_never_removes_what_is_undelivered_or_in_use(root: Path, tmp_path: Path) -> None:
    delivered = [journal(root, f"hd-{n}", delivered=True) for n in range(3)]
    waiting = journal(root, "hd-waiting", delivered=False)
    outputs = tmp_path / "outputs" / "localization"
    states = {"done": ("finished", "hd-0"), "broken": ("failed", "hd-1"), "undelivered": ("finished", "hd-waiting")}
    for name, (status, key) in states.items():
        folder = outputs / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
        for version in (0, 1):
            (folder / "lightning_logs" / f"version_{version}").mkdir(parents=True)
        record = {"task": "localization", "status": status, "run_key": key, "log_version": 1}
        (folder / "run.json").write_text(json.dumps(record))

    def left() -> set[str]:
        paths = [*root.glob("hd-*"), *outputs.glob("*/checkpoints"), *outputs.glob("*/lightning_logs/*")]
        return {str(path.relative_to(tmp_path)) for path in paths}

    before = left()
    dry = heimdall("clean", "--keep", "0", "--dry-run", cwd=tmp_path)
    assert "would remove journal" in dry.stdout
    assert left() == before
    assert "0 removed" in heimdall("clean", "--keep", "0", "--older-than", "1", cwd=tmp_path).stdout
    assert "0 removed" in heimdall("clean", "--keep", "9", cwd=tmp_path).stdout
    assert heimdall("clean", "--keep", "0", cwd=tmp_path).returncode == 0
    assert not any(folder.exists() for folder in delivered)
    assert waiting.exists()
    gone = {path.removeprefix("outputs/localization/") for path in before - left() if path.startswith("outputs")}
    # a broken run may be resumed: its checkpoints and its last log stay
    assert gone == {
        "done/checkpoints",
        "done/lightning_logs/version_0",
        "done/lightning_logs/version_1",
        "broken/lightning_logs/version_0",
    }


def test_wrong_use_of_sync_is_one_sentence(tmp_path: Path) -> None:
    for arguments, code, sentence in (
        (("sync", "nowhere"), 65, "There is no journal in nowhere"),
        (("sync", "x", "--all"), 2, "DIR and --all were both given"),
        (("sync", "--again"), 2, "--again was given without DIR"),
    ):
        done = heimdall(*arguments, cwd=tmp_path)
        assert done.returncode == code
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    assert "Everything is delivered" in heimdall("sync", cwd=tmp_path).stdout


def test_sync_tells_where_a_journal_of_another_server_belongs(root: Path, tmp_path: Path) -> None:
    folder = journal(root, "hd-other", delivered=True)
    cursor = Cursor.load(folder)
    cursor.place, cursor.done = "http://elsewhere:5000", False
    cursor.save(folder)
    done = heimdall("sync", str(folder), cwd=tmp_path)
    assert done.returncode == 69
    assert "belongs to http://elsewhere:5000" in " ".join(done.stderr.split())


@pytest.mark.xdist_group("servers")
def test_no_secret_is_written_anywhere(
    make_database: Callable[[], str], s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**s3.environment(), "MLFLOW_TRACKING_URI": make_database()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_ARTIFACT_URI", f"s3://{s3.make_bucket()}/runs")
    monkeypatch.setenv("HEIMDALL_START_WAIT_SECONDS", "60")
    settings = Settings()
    password = settings.tracking_uri.split(":")[2].split("@")[0]
    tracker = MLflowTracker(settings)
    tracker.start_run("secrets", {"uri": settings.tracking_uri})
    tracker.log_params({"key": s3.secret_key, "nested": {"deep": [s3.access_key]}, "uri": settings.tracking_uri})
    tracker.end_run()
    info = tracker.get_run_info(tracker.run_key)
    assert info.params["key"] == "**********"
    written = b"".join(path.read_bytes() for path in settings.home.rglob("*") if path.is_file())
    told = repr((info, settings, tracker)).encode()
    for secret in (password, s3.secret_key, s3.access_key):
        assert secret.encode() not in written
        assert secret.encode() not in told
    assert tmp_path in settings.home.parents


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel about another process")
def test_the_courier_lets_training_have_the_cores_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers: it has to stay
    monkeypatch.setenv("HEIMDALL_START_WAIT_SECONDS", "0")
    monkeypatch.setenv("HEIMDALL_END_WAIT_SECONDS", "0")
    monkeypatch.setenv("HEIMDALL_COURIER_LINGER_SECONDS", "0")
    with MLflowTracker(Settings()) as tracker:
        lock = Settings().journal_dir / tracker.run_key / "courier.lock"
        deadline = time.monotonic() + 60
        while not (courier := holder(lock)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, courier) == min(19, own + NICENESS)
        group = Path(f"/proc/{courier}/autogroup")
        assert not group.exists() or group.read_text().split()[-1] == str(NICENESS)
