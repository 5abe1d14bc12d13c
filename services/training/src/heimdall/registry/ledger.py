"""The ledger: every attempt to move an alias, in MLflow itself, in an order on which all processes agree.

MLflow's alias is an unconditional upsert: no compare-and-swap, no actor, no reason, no history. But a *parameter* of
a run can be written once only: the database refuses a second value under the same key. One run a model is therefore
the ledger, and parameter ``0007`` its seventh entry: of two processes that write it at once, one is refused, whatever
server, database or network lies between. An entry that moves an alias is followed by ``0007.outcome``, which is
written once in the same way.

    claim     write entry N+1, outcome pending        only one process can
    move      set the alias                           several may race here …
    settle    write its outcome, ``moved``            … but only an entry that is settled so counts
    verify    read the ledger again; where the alias is not what it says, set it and verify once more

Whoever writes the alias last verifies after that, so alias and ledger agree in the end (docs/decisions/0601).
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from heimdall.errors import DataError
from heimdall.registry.client import experiment_id
from heimdall.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "heimdall-ledger"
RUN_TAG = "heimdall.ledger"
LONGEST = 6000  # characters of a parameter; the server cuts longer ones in silence
OUTCOME = "outcome"

Kind = Literal["promote", "rollback", "outside"]
EntryVerdict = Literal["PROMOTE", "HOLD", "FORCED", "ROLLBACK", "OUTSIDE", "OVERTAKEN"]
MOVING = frozenset({"PROMOTE", "FORCED", "ROLLBACK", "OUTSIDE"})


IN_PROGRESS: set[str] = set()
"""Attempts that this process is in the middle of, in whatever thread."""


class Entry(BaseModel):
    """One attempt. ``outcome`` is not part of what is written first; it is read from its own parameter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attempt: str = Field(default_factory=lambda: uuid.uuid4().hex)
    kind: Kind
    verdict: EntryVerdict
    alias: str
    version_from: str | None
    version_to: str | None  # None: somebody removed the alias outside of the ledger
    who: str = Field(default_factory=lambda: whoami())
    process: str = Field(default_factory=lambda: this_process())
    when: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    why: str = ""
    reasons: tuple[str, ...] = ()
    data: str = ""
    data_digest: str = ""
    gates_digest: str = ""
    figures: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)  # challenger, champion
    number: int = 0
    outcome: str = ""  # "", or "moved …", "abandoned …"

    @property
    def moves(self) -> bool:
        """Whether this entry means to move the alias."""
        return self.verdict in MOVING

    @property
    def pending(self) -> bool:
        """Claimed, and nobody has said how it ended."""
        return self.moves and not self.outcome

    @property
    def moved(self) -> bool:
        """Whether the alias was moved."""
        return self.moves and self.outcome.startswith("moved")


def whoami() -> str:
    """The person and the machine, as ``anna@workstation``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # a container may run under a number that has no name
    return f"{user}@{socket.gethostname()}"


def this_process() -> str:
    """Machine and process id, by which another process sees whether this one still lives."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead(entry: Entry) -> bool:
    """Whether who claimed ``entry`` ran on this machine and is no more. Of other machines nothing is known: False."""
    host, _, number = entry.process.rpartition(":")
    if host != socket.gethostname():
        return False
    if number == str(os.getpid()):
        return entry.attempt not in IN_PROGRESS
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


class Ledger:
    """The ledger of one registered model. Any number of processes may hold one."""

    def __init__(self, client: MlflowClient, model: str, run_id: str) -> None:
        self.client, self.model, self.run_id = client, model, run_id

    @classmethod
    def open(cls, client: MlflowClient, settings: Settings, model: str) -> Ledger:
        """The model's ledger, begun where there is none.

        Which run it is must not depend on who looks first. The name of an experiment is unique in MLflow and its tags
        come with it, so the first process to make the experiment ``heimdall-ledger/MODEL`` decides; the experiment
        itself is only that mark and is put away at once. Raises :class:`DataError` where the run was deleted.
        """
        run_id = _agreed_run(client, model) or _propose_run(client, settings, model)
        if client.get_run(run_id).info.lifecycle_stage == "deleted":
            raise DataError(
                f"The ledger of {model}, run {run_id}, was deleted.",
                mend=f"Restore it: mlflow runs restore --run-id {run_id}",
            )
        return cls(client, model, run_id)

    def entries(self) -> list[Entry]:
        """All entries in order."""
        params = self.client.get_run(self.run_id).data.params
        found = []
        for key in sorted((key for key in params if key.isdigit()), key=int):
            content = json.loads(params[key])
            found.append(Entry(**content, number=int(key), outcome=params.get(f"{key}.{OUTCOME}", "")))
        return found

    def write(self, entry: Entry, number: int) -> bool:
        """Write ``entry`` under ``number``; False where another entry stands there already."""
        return self._write_once(f"{number:04d}", _fit(entry))

    def append(self, entry: Entry) -> Entry:
        """Write an entry that moves nothing under the next free number."""
        number = len(self.entries()) + 1
        while not self.write(entry, number):
            number += 1
        return entry.model_copy(update={"number": number})

    def settle(self, entry: Entry, outcome: str) -> bool:
        """Say how a moving entry ended; False where somebody else has said something else."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        before = self._read(f"{entry.number:04d}.{OUTCOME}")
        if before is not None:
            return before.split()[0] == outcome
        if self._write_once(f"{entry.number:04d}.{OUTCOME}", f"{outcome} {now} by {whoami()}"):
            return True
        after = self._read(f"{entry.number:04d}.{OUTCOME}")
        return after is not None and after.split()[0] == outcome

    def _read(self, key: str) -> str | None:
        return self.client.get_run(self.run_id).data.params.get(key)

    def _write_once(self, key: str, value: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_param(self.run_id, key, value)
        except MlflowException:
            before = self._read(key)
            if before is None:
                raise  # refused for another reason
            return before == value
        return True


def standing(entries: Sequence[Entry], alias: str) -> str | None:
    """The version that the ledger says ``alias`` names; None where it has never been moved."""
    moved = [entry for entry in entries if entry.alias == alias and entry.moved]
    return moved[-1].version_to if moved else None


def previous(entries: Sequence[Entry], alias: str) -> list[str]:
    """The versions that a rollback goes back to, latest first: promotions are stacked, a rollback takes one off."""
    stack: list[str | None] = []
    for entry in entries:
        if entry.alias != alias or not entry.moved:
            continue
        if not stack and entry.version_from is not None:
            stack.append(entry.version_from)
        if entry.kind == "rollback" and entry.version_to in stack:
            while stack[-1] != entry.version_to:
                stack.pop()
        else:
            stack.append(entry.version_to)
    return [version for version in stack[-2::-1] if version is not None]


def _fit(entry: Entry) -> str:
    """The entry as JSON that a parameter can hold whole; what is left out is in the entry's artifact."""
    written = entry.model_dump(mode="json", exclude={"number", "outcome"})
    for shorten in ("figures", "reasons", "why"):
        text = json.dumps(written, ensure_ascii=True)
        if len(text) <= LONGEST:
            return text
        if shorten == "figures":
            written["figures"] = {}
        elif shorten == "reasons":
            written["reasons"] = [*[reason[:200] for reason in entry.reasons[:8]], "… (the rest is in the artifact)"]
        else:
            written["why"] = entry.why[:500] + " … (the rest is in the artifact)"
    return json.dumps(written, ensure_ascii=True)


def _agreed_run(client: MlflowClient, model: str) -> str | None:
    mark = client.get_experiment_by_name(f"{EXPERIMENT}/{model}")
    return None if mark is None else mark.tags.get(RUN_TAG)


def _propose_run(client: MlflowClient, settings: Settings, model: str) -> str:
    from mlflow.exceptions import MlflowException

    home = experiment_id(client, settings, EXPERIMENT)
    tags: dict[str, Any] = {RUN_TAG: model, "mlflow.runName": f"promotions of {model}", "mlflow.user": whoami()}
    run_id = str(client.create_run(home, tags=tags).info.run_id)
    client.set_terminated(run_id)  # nothing runs; a finished run takes entries all the same
    try:
        mark = client.create_experiment(f"{EXPERIMENT}/{model}", tags={RUN_TAG: run_id})
        client.delete_experiment(mark)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    agreed = _agreed_run(client, model)
    if agreed is None:
        raise DataError(f"The experiment {EXPERIMENT}/{model} was not made by heimdall.", mend="Rename it.")
    if agreed != run_id:
        client.delete_run(run_id)
    return agreed
