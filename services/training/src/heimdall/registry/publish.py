"""What people see of the ledger in MLflow's UI: a table in its run's description, files, tags, curves.

All of it can be made again from the ledger, so nothing here is allowed to fail a promotion that has been decided.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from heimdall import logs
from heimdall.errors import HeimdallError
from heimdall.registry.aliases import CHAMPION
from heimdall.registry.card import champion_page, figure, table
from heimdall.registry.client import asking, version_or_none

if TYPE_CHECKING:
    from heimdall.registry.ledger import Entry
    from heimdall.registry.moves import Desk

LONGEST_NOTE = 8000  # characters of a run's tag
COLUMNS = ("entry", "when", "alias", "from", "to", "verdict", "who", "why")

log = logs.get(__name__)


def row(entry: Entry) -> tuple[str, ...]:
    """One line of the history."""
    verdict = entry.verdict if not entry.moves or entry.moved else f"{entry.verdict} ({entry.outcome or 'pending'})"
    why = "; ".join(part for part in (entry.why, *entry.reasons) if part)
    when = entry.when[:19].replace("T", " ")
    return (
        str(entry.number),
        when,
        entry.alias,
        entry.version_from or "–",
        entry.version_to or "–",
        verdict,
        entry.who,
        why,
    )


def publish(desk: Desk, entry: Entry) -> None:
    """Show ``entry`` in the UI; what cannot be shown now is a warning, and comes with the next entry."""
    try:
        with asking(desk.settings, "show the ledger in MLflow's UI"):
            _publish(desk, entry)
    except HeimdallError as error:
        log.warning("the ledger is written, but not shown everywhere yet", reason=error.message)


def _publish(desk: Desk, entry: Entry) -> None:
    client, run = desk.client, desk.ledger.run_id
    content = json.dumps(entry.model_dump(mode="json"), indent=1)
    client.log_text(run, content, f"entries/{entry.number:04d}.json")
    entries = desk.ledger.entries()
    history = table(COLUMNS, [row(one) for one in reversed(entries)])
    client.log_text(run, f"# Promotions of {desk.name}\n\n{history}\n", "history.md")
    client.set_tag(run, "mlflow.note.content", _note(desk.name, entries))
    _log_curves(desk, entry)
    client.set_registered_model_tag(desk.name, "heimdall.ledger", run)
    if entry.moved:
        _show_holder(desk, entry)
    if entry.version_to is not None:
        said = f"{entry.verdict} for {entry.alias}, {entry.when[:19]}, {entry.who}, entry {entry.number}"
        with contextlib.suppress(Exception):  # the version may be the one that does not exist
            client.set_model_version_tag(desk.name, entry.version_to, "heimdall.verdict", said)


def _show_holder(desk: Desk, entry: Entry) -> None:
    name, version = desk.name, entry.version_to
    since = f"version {version or '–'} since {entry.when[:19]} by {entry.who}"
    desk.client.set_registered_model_tag(name, f"heimdall.{entry.alias}", since)
    holder = version_or_none(desk.client, name, version) if version is not None else None
    if entry.alias == CHAMPION and holder is not None:
        text = champion_page(holder.description or "", str(version), entry.who, entry.when)
        desk.client.update_registered_model(name, text)


def _note(name: str, entries: list[Entry]) -> str:
    head = f"Every attempt to move an alias of **{name}**, latest first. The parameters are the ledger itself.\n\n"
    rows: list[tuple[str, ...]] = []
    for entry in reversed(entries):
        longer = head + table(COLUMNS, [*rows, row(entry)])
        if len(longer) > LONGEST_NOTE:
            break
        rows.append(row(entry))
    return head + table(COLUMNS, rows)


def _log_curves(desk: Desk, entry: Entry) -> None:
    from mlflow.entities import Metric

    metrics: list[Any] = []
    for name, (ours, theirs) in entry.figures.items():
        for who, value in (("challenger", ours), ("champion", theirs)):
            if value is not None:
                metrics.append(Metric(f"{who}/{name}", value, 0, entry.number))
    if metrics:
        desk.client.log_batch(desk.ledger.run_id, metrics=metrics)


def describe(value: float | None) -> str:
    """A figure for a table; an empty cell where there is none."""
    return "" if value is None else figure(value)
