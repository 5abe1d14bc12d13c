"""Locks that die with their process: POSIX record locks, which a forked data-loader worker does not inherit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
import time
from pathlib import Path

# struct flock: type, whence, start, len, pid on Linux; start, len, pid, type, whence on macOS
_IS_MACOS = sys.platform == "darwin"
_LAYOUT = "qqihh" if _IS_MACOS else "hhqqi"
_held: set[Path] = set()


class ProcessLock:
    """Exclusive between processes and within one. Released by :meth:`release`, or when the process ends."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._descriptor: int | None = None

    def acquire(self, timeout_seconds: float = 0.0) -> bool:
        """Try for at most ``timeout_seconds``; whether the lock is ours now."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            if self._try():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)

    def _try(self) -> bool:
        if self.path in _held:
            return False
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        _held.add(self.path)
        return True

    def release(self) -> None:
        """Give it back; harmless where it is not held."""
        if self._descriptor is not None:
            _held.discard(self.path)
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock at ``path``. Asks without taking it, so nobody is disturbed."""
    return holder(path) is not None


def holder(path: Path) -> int | None:
    """Process id of whoever holds the lock at ``path`` (0 where it lives in another container), None for nobody."""
    path = path.absolute()
    if path in _held:
        return os.getpid()  # closing any descriptor of our own lock would release it
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            question = (0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET) if _IS_MACOS else (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = struct.unpack(_LAYOUT, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(_LAYOUT, *question)))
            kind, process = (answer[3], answer[2]) if _IS_MACOS else (answer[0], answer[4])
            return None if kind == fcntl.F_UNLCK else int(process)
        finally:
            os.close(descriptor)
    return None
