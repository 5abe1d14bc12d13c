"""``heimdall …`` in child processes of one that has imported torch already: a real process, without the seconds."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["lightning.pytorch", "torchmetrics", "torch.utils.tensorboard", "pandas", "yaml"])


@dataclass
class Command:
    """A running ``heimdall …``."""

    process: BaseProcess
    folder: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def output(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def errors(self) -> str:
        return (self.folder / "stderr").read_text()

    def wait(self, seconds: float = 120) -> int:
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s: {self.errors}"
        return self.process.exitcode


Start = Callable[..., Command]


def start_command(
    arguments: list[str], environment: dict[str, str], paths: list[str], folder: Path, work: Path
) -> Command:
    """Start ``heimdall ARGUMENTS``; what it says goes to files in ``folder``."""
    for name in ("stdout", "stderr"):
        (folder / name).touch()
    process = context.Process(target=_main, args=(arguments, environment, paths, folder, work))
    process.start()
    return Command(process, folder)


def _main(arguments: list[str], environment: dict[str, str], paths: list[str], folder: Path, work: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = paths
    os.chdir(work)
    for name, stream in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY), stream)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    import torch

    torch.set_num_threads(1)
    if limit := environment.get("FILE_SIZE_LIMIT"):
        # the nearest to a full disk that needs no mount: a write beyond it fails with EFBIG
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    from heimdall.cli import main

    main(arguments)
