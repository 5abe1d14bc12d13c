"""Sees to it that a courier is at work as long as a run is open, and that what waits in memory gets to the disk."""

from __future__ import annotations

import threading
from pathlib import Path

from heimdall import logs
from heimdall.settings import Settings
from heimdall.tracking.courier import start_courier
from heimdall.tracking.cursor import is_delivered
from heimdall.tracking.journal import JournalWriter
from heimdall.tracking.locks import is_locked

WATCH_SECONDS = 5.0

log = logs.get(__name__)


class CourierWatch:
    """A thread of the training process that wakes every five seconds."""

    def __init__(self, folder: Path, settings: Settings, journal: JournalWriter) -> None:
        self._folder, self._settings, self._journal = folder, settings, journal
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier-watch", daemon=True)

    def start(self) -> None:
        """Start the courier, and the thread that starts it again should it be killed."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Look no more; the courier works on."""
        self._stop.set()

    def look(self) -> None:
        """Start a courier where none is at work and something is left to do."""
        if is_locked(self._folder / "courier.lock") or is_delivered(self._folder):
            return
        try:
            start_courier(self._folder, self._settings)
        except OSError as error:
            log.warning("The courier cannot be started; it is tried again.", reason=error.strerror)

    def _run(self) -> None:
        while not self._stop.wait(WATCH_SECONDS):
            self._journal.retry()
            self.look()
