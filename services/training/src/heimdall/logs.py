"""Logging for people and machines: structlog on stderr, one line an event, secrets never printed."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

SECRET_KEY = re.compile(r"(?i)(password|passwd|secret|token|access_key|credential|authorization)")
URI_PASSWORD = re.compile(r"(?P<head>[a-z][a-z0-9+.-]*://[^:/@\s]*):[^@/\s]+@")
HIDDEN = "**********"


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


def configure(*, quiet: bool = False, debug: bool = False) -> None:
    """Set up structlog once a process: readable on a terminal, JSON where HEIMDALL_LOG_FORMAT=json says so."""
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
