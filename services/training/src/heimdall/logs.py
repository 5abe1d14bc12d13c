"""Logging for people and machines: structlog on stderr, one line an event, secrets never printed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import structlog

SECRET_KEY = re.compile(r"(?i)(password|passwd|secret|token|access_key|credential|authorization)")
URI_PASSWORD = re.compile(r"(?P<head>[a-z][a-z0-9+.-]*://[^:/@\s]*):[^@/\s]+@")
HIDDEN = "**********"

_progress_shown = True


def redact(text: str) -> str:
    """``text`` with the password of every URI in it hidden: ``postgresql://me:**********@host/db``."""
    return URI_PASSWORD.sub(rf"\g<head>:{HIDDEN}@", text)


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if SECRET_KEY.search(key):
            event[key] = HIDDEN
        elif isinstance(value, str):
            event[key] = redact(value)
    return event


def configure(*, quiet: bool = False, debug: bool = False, show_progress: bool = True) -> None:
    """Set up structlog once a process: readable on a terminal, JSON where HEIMDALL_LOG_FORMAT=json says so."""
    global _progress_shown
    _progress_shown = show_progress
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    as_json = os.environ.get("HEIMDALL_LOG_FORMAT", "") == "json"
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json),
            _redact_event,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


def get(name: str) -> Any:
    """A logger that names its module in every event."""
    return structlog.get_logger(name).bind(logger=name)


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far long work is, on stderr: a bar on a terminal, one line elsewhere, nothing where a run is quiet.

    Gives a function that is told how many of ``total`` are done.
    """
    if not _progress_shown:
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{description} …", highlight=False)
        yield lambda _done: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)
