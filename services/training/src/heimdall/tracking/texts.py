"""What callers hand over, as the text and numbers that the journal keeps: without secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from heimdall import logs
from heimdall.settings import Settings

SHORTEST_SECRET = 6  # a shorter one would hide ordinary words

log = logs.get(__name__)


class Texts:
    """Makes texts of values, with every secret of the settings hidden."""

    def __init__(self, settings: Settings) -> None:
        secrets = [
            settings.mlflow_tracking_password.get_secret_value(),
            settings.mlflow_s3_access_key_id.get_secret_value(),
            settings.mlflow_s3_secret_access_key.get_secret_value(),
        ]
        with suppress(ArgumentError):
            secrets.append(str(make_url(settings.tracking_uri).password or ""))
        self._secrets = [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]

    def of(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Names and texts, safe to keep."""
        return {self._without_secrets(str(name)): self._without_secrets(as_text(v)) for name, v in values.items()}

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, logs.HIDDEN)
        return logs.redact(text)


def as_text(value: Any) -> str:
    """A param's value as MLflow keeps it: text as it is, lists and dicts as JSON, the rest as ``str`` says."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return json.dumps(dict(value), default=str, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)


def numbers_only(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of ``metrics`` that are numbers; the others are named in a warning."""
    kept: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            kept[name] = float(value)
        except (TypeError, ValueError, OverflowError):  # said in words, a traceback would drown it
            log.warning("A metric is no number and was left out.", metric=name, type=type(value).__name__)
    return kept
