"""A training process for the fault tests: logs what can be told from the step alone, and notes what was accepted.

``trainer.py NOTES STEPS PAUSE_SECONDS [--resume RUN] [--strict] [--clock-back SECONDS]``. After each call
has returned, a line is written to NOTES, so that a test knows what must not be lost, whenever it kills this process.
SIGUSR1 ends the training early.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("notes", type=Path)
parser.add_argument("steps", type=int)
parser.add_argument("pause", type=float)
parser.add_argument("--first", type=int, default=0)
parser.add_argument("--resume")
parser.add_argument("--strict", action="store_true")
parser.add_argument("--clock-back", type=float, default=0.0)
parser.add_argument("--status", default="FINISHED")
arguments = parser.parse_args()

if arguments.clock_back:
    true_time = time.time_ns
    time.time_ns = lambda: true_time() - int(arguments.clock_back * 1e9)

from heimdall import logs  # noqa: E402
from heimdall.settings import Settings  # noqa: E402
from heimdall.tracking.tracker import MLflowTracker  # noqa: E402

logs.configure()
notes = os.open(arguments.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(text: str) -> None:
    os.write(notes, f"{text}\n".encode())


def artifact(step: int) -> Path:
    path = arguments.notes.with_name(f"step-{step}.bin")
    # every third one is large enough to be linked, and is rotated away
    path.write_bytes(step.to_bytes(4, "big") * ((1 << 18) + 1 if step % 60 == 0 else 100))
    return path


tracker = MLflowTracker(Settings(), strict=arguments.strict)
tracker.start_run("fault", {"purpose": "fault test"}, resume=arguments.resume)
note(f"run {tracker.run_key}")
tracker.log_params({"lr": 0.1, "long": "x" * 7000})
note("params")
enough = []
signal.signal(signal.SIGUSR1, lambda *_: enough.append(True))
for step in range(arguments.first, arguments.first + arguments.steps):
    if enough:
        break
    tracker.log_metrics({"loss": step / 7, "odd+name": -step}, step=step)
    note(f"step {step}")
    if step % 20 == 0:
        path = artifact(step)
        tracker.log_artifact(path, "files")
        path.unlink()
        note(f"file {step}")
    time.sleep(arguments.pause)
note("end")
tracker.end_run(arguments.status)
note(f"undelivered {tracker.undelivered}")
