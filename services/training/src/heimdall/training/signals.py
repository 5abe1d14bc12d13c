"""SIGTERM and SIGINT: remembered while batches run, so that the loop can save first; at once everywhere else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import click

from heimdall.errors import StoppedBySignal

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody asked the run to stop.

    Inside :meth:`deferred` a first signal is only remembered (:attr:`signal_number`); whoever runs the batches looks at
    it, saves, and calls :meth:`stop`. A second signal, and any signal outside, raises
    :class:`~heimdall.errors.StoppedBySignal` where the process stands. Only the main thread can install handlers;
    elsewhere this object never asks to stop.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._deferring = False
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def install(self) -> None:
        """Take the signals; again after a library took them from us."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPPING:
            current = signal.signal(number, self._handle)
            if current is not self._handle and number not in self._before:
                self._before[number] = current

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While batches run, remember a signal instead of raising."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def stop(self) -> None:
        """Raise what the signal asked for."""
        raise StoppedBySignal(self.signal_number or signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._owner:
            # a forked loader worker: the terminal's Ctrl-C is ours to answer, an order to end is its own
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.signal_number is not None or not self._deferring:
            self.signal_number = number
            raise StoppedBySignal(number)
        self.signal_number = number
        click.echo(f"\n{signal.Signals(number).name}: saving a checkpoint at the next batch, then stopping.", err=True)
