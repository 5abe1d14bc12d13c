"""Writing checkpoints beside training: snapshot, then write, then rename; never a broken file under its final name."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from heimdall.training.snapshot import SnapshotMemory, shapes_in


class CheckpointWriter(CheckpointIO):
    """Lightning's checkpoint plugin: training waits for a copy in memory, a thread does the writing.

    One save is in flight at a time, so that memory holds one snapshot at most. An error of the thread is raised by the
    next call here, at the latest by :meth:`drain`. What is queued with :meth:`then` runs after the saves before it.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[Any]] = []
        self._held: list[Callable[[], Any]] | None = None
        self._memory = SnapshotMemory()

    def reserve(self, value: Any) -> None:
        """Ready the memory for snapshots of ``value`` in the thread, so that the first save does not wait for it."""
        shapes = list(shapes_in(value))
        self.then(lambda: self._memory.reserve(shapes))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Copy ``checkpoint`` and return; it is at ``path`` when all jobs are done."""
        del storage_options
        self.drain()
        copy = self._memory.take(checkpoint)
        self.then(lambda: self._write(copy, Path(path)))

    def _write(self, copy: Any, path: Path) -> None:
        try:
            write(copy, path)
        finally:
            self._memory.release()

    def then(self, job: Callable[[], Any]) -> None:
        """Run ``job`` after everything queued so far, unless something queued before failed."""
        if self._held is not None:
            self._held.append(job)
            return
        self._pool = self._pool or ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        before = self._jobs[-1] if self._jobs else None

        def run() -> None:
            if before is None or before.exception() is None:
                job()

        self._jobs.append(self._pool.submit(run))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Queue as one what is queued inside, unless that fails.

        The thread and training take turns in running Python, so it had better not wake for a rename while the state is
        still being collected.
        """
        held: list[Callable[[], Any]] = []
        self._held = held
        try:
            yield
        finally:
            self._held = None
        self.then(lambda: [job() for job in held])

    def drain(self) -> None:
        """Wait for all jobs.

        Raises the first error that one of them met, for example :class:`OSError` where there is no space.
        """
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; only plain types, never a pickle."""
        del weights_only
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, after everything queued so far."""
        self.then(lambda: Path(path).unlink(missing_ok=True))

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.teardown()

    def teardown(self) -> None:
        """Wait for all jobs and end the thread."""
        try:
            self.drain()
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=True)
                self._pool = None
            self._memory = SnapshotMemory()


def write(checkpoint: Any, path: Path) -> None:
    """Write ``checkpoint`` to ``path``: whole, on the disk, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (RuntimeError, OSError) as error:
        part.unlink(missing_ok=True)
        # torch's zip writer hides why a write failed, and a file object where
        raise _cause(error, path) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def link(source: Path, target: Path) -> None:
    """Make ``target`` another name of ``source``, at once."""
    if target.exists() and target.samefile(source):
        return  # a rename between two names of one file would do nothing and leave both
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(source)
    except OSError:
        # a file system without hard links
        import shutil

        shutil.copyfile(source, part)
    part.replace(target)


def is_whole(path: Path) -> bool:
    """Whether ``path`` is a checkpoint without a damaged byte; reads all of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False


def sync_folder(folder: Path) -> None:
    """Bring a rename in ``folder`` onto the disk."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _cause(error: BaseException, path: Path) -> OSError:
    while error.__context__ is not None and not isinstance(error, OSError):
        error = error.__context__
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, str(path))
    import errno

    return OSError(errno.EIO, f"writing failed: {error}", str(path))
