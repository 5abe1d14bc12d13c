"""How an alias moves: claim a place in the ledger, set the alias, settle, verify. Nothing else may set an alias.

The order, and why two at once cannot both win unseen, is explained in :mod:`heimdall.registry.ledger`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heimdall import logs
from heimdall.errors import DataError, HoldError, ServiceError
from heimdall.registry.aliases import follow_stages
from heimdall.registry.client import alias_target, asking, connect
from heimdall.registry.ledger import IN_PROGRESS, Entry, Ledger, is_dead, standing
from heimdall.registry.publish import publish

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from heimdall.settings import Settings

PATIENCE_SECONDS = 20.0
"""How long a claimed move of another process is waited for before it is taken for dead. It takes milliseconds."""
POLL_SECONDS = 0.2
MOST_CORRECTIONS = 20

log = logs.get(__name__)


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What every move needs: the client, the model, its ledger."""

    client: MlflowClient
    settings: Settings
    name: str
    ledger: Ledger


def open_desk(name: str, settings: Settings) -> Desk:
    """Connect and open the ledger of the registered model ``name``. Raises :class:`DataError` where there is none."""
    client = connect(settings)
    with asking(settings, f"find the model {name}"):
        known = sorted(model.name for model in client.search_registered_models(max_results=1000))
        if name not in known:
            raise DataError(
                f"There is no registered model {name!r}.", mend=f"There are: {', '.join(known) or 'none yet'}."
            )
        return Desk(client=client, settings=settings, name=name, ledger=Ledger.open(client, settings, name))


def last_move(entries: Sequence[Entry], alias: str) -> int:
    """Number of the last entry that moved ``alias``; 0 where none has."""
    return max((entry.number for entry in entries if entry.alias == alias and entry.moved), default=0)


def settle_earlier(desk: Desk, alias: str) -> list[Entry]:
    """Finish what an earlier process left half done, record what was done past the ledger; returns all entries."""
    entries = _finish_pending(desk, alias)
    held = alias_target(desk.client, desk.name, alias)
    actual = str(held.version) if held is not None else None
    if actual != standing(entries, alias):
        outside = Entry(
            kind="outside",
            verdict="OUTSIDE",
            alias=alias,
            version_from=standing(entries, alias),
            version_to=actual,
            who="unknown",
            why="The alias was set past the ledger: in MLflow's UI, by another program, or with its version deleted."
            if entries
            else "The alias was set before the ledger was begun.",
        )
        if desk.ledger.write(outside, len(entries) + 1):
            outside = outside.model_copy(update={"number": len(entries) + 1})
            desk.ledger.settle(outside, "moved")
            publish(desk, outside)
        return desk.ledger.entries()
    follow_stages(desk.client, desk.name)
    return entries


def _finish_pending(desk: Desk, alias: str) -> list[Entry]:
    """Wait for moves that are under way; give up those of dead processes, or complete them where the alias was set."""
    while True:
        entries = desk.ledger.entries()
        pending = [entry for entry in entries if entry.pending and entry.alias == alias]
        if not pending:
            return entries
        entry = pending[0]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_dead(entry) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            entry = desk.ledger.entries()[entry.number - 1]
            if not entry.pending:
                break
        if entry.pending:
            held = alias_target(desk.client, desk.name, alias)
            done = held is not None and str(held.version) == entry.version_to
            desk.ledger.settle(entry, "moved" if done else "abandoned")


def move(desk: Desk, entry: Entry, seen: int) -> Entry:
    """Move the alias as ``entry`` says, if nobody has moved it since entry ``seen``; returns the settled entry.

    Raises :class:`HoldError`, after recording it, where somebody has; :class:`DataError` where the version is gone.
    """
    with asking(desk.settings, f"move {entry.alias} of {desk.name}"), _in_progress(entry):
        entry = _claim(desk, entry, seen)
        try:
            desk.client.set_registered_model_alias(desk.name, entry.alias, str(entry.version_to))
        except Exception:
            with contextlib.suppress(Exception):  # where the server is gone, the next command does this
                _give_up(desk, entry)
            raise
        settled = desk.ledger.settle(entry, "moved")
        _verify(desk, entry.alias)
        if not settled:
            raise HoldError(
                f"The move of {entry.alias} to version {entry.version_to} took so long that another gave it up.",
                mend=f"Nothing has changed; see heimdall models history {desk.name} and run it again.",
            )
        follow_stages(desk.client, desk.name)
        entry = desk.ledger.entries()[entry.number - 1]
    publish(desk, entry)
    return entry


def _give_up(desk: Desk, entry: Entry) -> None:
    held = alias_target(desk.client, desk.name, entry.alias)
    if held is None or str(held.version) != entry.version_to:
        desk.ledger.settle(entry, "abandoned")


@contextlib.contextmanager
def _in_progress(entry: Entry) -> Iterator[None]:
    IN_PROGRESS.add(entry.attempt)
    try:
        yield
    finally:
        IN_PROGRESS.discard(entry.attempt)


def _claim(desk: Desk, entry: Entry, seen: int) -> Entry:
    while True:
        entries = _finish_pending(desk, entry.alias)
        latest = last_move(entries, entry.alias)
        if latest != seen:
            winner = entries[latest - 1]
            told = (
                f"While this ran, {winner.who} moved {entry.alias} to version {winner.version_to} "
                f"(entry {winner.number} of the ledger)"
            )
            record(desk, entry.model_copy(update={"verdict": "OVERTAKEN", "reasons": (told,)}))
            raise HoldError(f"{told}; nothing was moved.", mend="Run it again to be compared with the new one.")
        if desk.ledger.write(entry, len(entries) + 1):
            return entry.model_copy(update={"number": len(entries) + 1})


def _verify(desk: Desk, alias: str) -> None:
    """Read the ledger after the alias was written; where they differ, the ledger is right."""
    for _ in range(MOST_CORRECTIONS):
        wanted = standing(desk.ledger.entries(), alias)
        held = alias_target(desk.client, desk.name, alias)
        if wanted is None or (held is not None and str(held.version) == wanted):
            return
        desk.client.set_registered_model_alias(desk.name, alias, wanted)
    raise ServiceError(
        f"The alias {alias} of {desk.name} does not stay at version {wanted}: somebody else keeps setting it.",
        mend="Find who sets it past the ledger, then run heimdall models history.",
    )


def record(desk: Desk, entry: Entry) -> Entry:
    """Write an entry that moves nothing."""
    with asking(desk.settings, "write the ledger"):
        entry = desk.ledger.append(entry)
    publish(desk, entry)
    return entry
