"""``kill -9`` at random moments of a save: under its final name there is always a whole checkpoint."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from heimdall.training.writer import is_whole

ROUNDS = int(os.environ.get("HEIMDALL_FAULT_ROUNDS", "0")) or 8

# forks one process a line; each saves for ever. All numbers of one save are the same: a mixture of two would show.
SAVERS = """
import os, sys, torch
from pathlib import Path
from heimdall.training.writer import CheckpointWriter
torch.set_num_threads(1)
for path in sys.stdin:
    if pid := os.fork():
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("gone", flush=True)
        continue
    tensors = [torch.zeros(500_000) for _ in range(4)]
    writer = CheckpointWriter()
    step = 0
    while True:
        step += 1
        for tensor in tensors:
            tensor.fill_(step)
        writer.save_checkpoint({"step": step, "tensors": tensors}, Path(path.strip()))
"""


@pytest.fixture
def savers() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", SAVERS], stdin=PIPE, stdout=PIPE, text=True) as process:
        yield process
        process.stdin.close()
        process.wait(30)


@pytest.mark.fault
def test_a_kill_during_a_save_leaves_a_whole_checkpoint(tmp_path: Path, savers: subprocess.Popen[str]) -> None:
    path = tmp_path / "last.ckpt"
    generator = random.Random(7)
    torn = 0
    for _ in range(ROUNDS):
        before = path.stat().st_mtime_ns if path.exists() else 0
        savers.stdin.write(f"{path}\n")
        savers.stdin.flush()
        pid = int(savers.stdout.readline())
        while not path.exists() or path.stat().st_mtime_ns == before:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert savers.stdout.readline() == "gone\n"
        torn += any(tmp_path.glob(".last.ckpt.*.part"))
        assert is_whole(path)
        found = torch.load(path, weights_only=True)
        assert found["step"] >= 1
        assert all(bool((tensor == found["step"]).all()) for tensor in found["tensors"])
    assert torn, "no kill hit a save: the test has proved nothing"
