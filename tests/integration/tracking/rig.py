"""What the fault tests share: trainers, couriers, `heimdall`, and a comparison of everything with what was logged."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heimdall.tracking.cursor import Cursor
from heimdall.tracking.locks import holder

TRAINER = Path(__file__).with_name("trainer.py")
HEIMDALL = Path(sys.executable).with_name("heimdall")


@dataclass
class Trainer:
    """One training process and its notes."""

    rig: Rig
    notes: Path
    process: subprocess.Popen[str]

    def noted(self, word: str) -> list[str]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == word]

    @property
    def key(self) -> str:
        return self.noted("run")[0]

    @property
    def journal(self) -> Path:
        return self.rig.home / "journal" / self.key

    def wait_for_steps(self, count: int, timeout_seconds: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_seconds
        while len(self.noted("step")) < count:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"only {len(self.noted('step'))} steps"
            time.sleep(0.02)

    def end(self, timeout_seconds: float = 120.0) -> str:
        """Wait for its end; what it printed."""
        printed, _ = self.process.communicate(timeout=timeout_seconds)
        return printed

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def output(self) -> str:
        self.process.kill()
        return self.process.communicate()[0]

    def courier(self) -> int | None:
        return holder(self.journal / "courier.lock")

    def kill_courier(self) -> bool:
        pid = self.courier()
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
        return bool(pid)


@dataclass
class Rig:
    """A home for journals, and the settings of the server that they go to."""

    home: Path
    environment: dict[str, str]
    server: str  # where the test itself asks, past any proxy
    s3: Any
    made: list[Trainer] = field(default_factory=list)

    def variables(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "HEIMDALL_HOME": str(self.home),
            "HEIMDALL_START_WAIT_SECONDS": "0.2",
            "HEIMDALL_END_WAIT_SECONDS": "0.2",
            "HEIMDALL_COURIER_LINGER_SECONDS": "30",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
            **self.environment,
            **more,
        }

    def train(self, steps: int, pause: float = 0.002, *options: str, **variables: str) -> Trainer:
        notes = self.home / f"trainer-{len(self.made)}" / "notes"
        notes.parent.mkdir(parents=True)
        command = [sys.executable, str(TRAINER), str(notes), str(steps), str(pause), *options]
        process = subprocess.Popen(
            command,
            env=self.variables(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.made.append(Trainer(self, notes, process))
        return self.made[-1]

    def heimdall(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(HEIMDALL), *arguments],
            env=self.variables(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=self.home,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def stop_all(self) -> None:
        """End every trainer and courier that a test left."""
        for trainer in self.made:
            if trainer.process.poll() is None:
                trainer.process.kill()
            if trainer.process.stdout is not None and not trainer.process.stdout.closed:
                trainer.process.communicate()
            if trainer.noted("run"):
                trainer.kill_courier()

    def compare(self, *trainers: Trainer, status: str, lost_files: int = 0) -> None:
        """Every point, param, tag and file of the run is on the server once, and nothing else; the status is right.

        Several trainers are the sessions of one run.
        """
        from mlflow.tracking import MlflowClient

        client = MlflowClient(self.server)
        key = trainers[0].key
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.`heimdall.run_key` = '{key}'")
        assert len(runs) == 1, f"{len(runs)} runs for {key}"
        run = runs[0]
        steps = sorted({int(text) for trainer in trainers for text in trainer.noted("step")})
        cursor = Cursor.load(self.home / "journal" / key)
        assert cursor.damaged == []
        assert cursor.refusals == []
        odd = next(metric for metric, text in run.data.tags.items() if text == "odd+name") if steps else ""
        for metric, value in (
            ("loss", lambda step: step / 7),
            (odd.removeprefix("heimdall.name."), lambda step: -step),
        ):
            if steps:
                history = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric))
                # a call that was cut short by the kill may have been written without having returned
                extra = [steps[-1] + 1] if len(history) == len(steps) + 1 else []
                assert history == [(step, value(step)) for step in steps + extra], metric
        if any(trainer.noted("params") for trainer in trainers):
            assert run.data.params["lr"] == "0.1"
            digest = hashlib.sha256(b"x" * 7000).hexdigest()
            assert run.data.params["long"].startswith(f"sha256:{digest}")
            assert hashlib.sha256(self.file(run, "heimdall/params/long.txt") or b"").hexdigest() == digest
        assert run.data.tags["purpose"] == "fault test"
        missing = 0
        for step in {int(text) for trainer in trainers for text in trainer.noted("file")}:
            expected = step.to_bytes(4, "big") * ((1 << 18) + 1 if step % 60 == 0 else 100)
            stored = self.file(run, f"files/step-{step}.bin")
            missing += stored is None
            assert stored is None or hashlib.sha256(stored).digest() == hashlib.sha256(expected).digest()
        assert missing == lost_files
        assert run.info.status == status
        assert run.info.run_name == "fault"
        assert not any((self.home / "journal" / key / "staged").iterdir()), "staged files stay after delivery"
        assert self.interrupted_uploads(run) == []

    def file(self, run: Any, destination: str) -> bytes | None:
        """What S3 holds there; None where there is nothing."""
        bucket, _, prefix = run.info.artifact_uri.removeprefix("s3://").partition("/")
        client = self.s3.client()
        try:
            return bytes(client.get_object(Bucket=bucket, Key=f"{prefix}/{destination}")["Body"].read())
        except client.exceptions.NoSuchKey:
            return None

    def interrupted_uploads(self, run: Any) -> list[str]:
        bucket, _, prefix = run.info.artifact_uri.removeprefix("s3://").partition("/")
        found = self.s3.client().list_multipart_uploads(Bucket=bucket, Prefix=prefix)
        return [upload["Key"] for upload in found.get("Uploads", [])]
