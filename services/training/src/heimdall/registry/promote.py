"""Promote, hold back, force, roll back: every way that an alias moves, each recorded in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heimdall.errors import DataError, HeimdallError, ServiceError, UsageError
from heimdall.registry.aliases import CHALLENGER, CHAMPION, known_alias
from heimdall.registry.client import asking, version_or_none
from heimdall.registry.evaluate import evaluate, open_version
from heimdall.registry.gates import Figures, Gates, Judgement, find_gates, judge
from heimdall.registry.ledger import Entry, previous, standing
from heimdall.registry.moves import Desk, last_move, move, open_desk, record, settle_earlier
from heimdall.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How an attempt ended."""

    entry: Entry
    judgement: Judgement | None = None
    notes: tuple[str, ...] = ()
    already: bool = False  # the alias names this version already; nothing was done

    @property
    def held(self) -> bool:
        """Whether a gate held the model back."""
        return not self.already and not self.entry.moved


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What judging brought to light."""

    fields: dict[str, Any]  # for the entry
    reasons: tuple[str, ...]
    judgement: Judgement | None = None
    notes: tuple[str, ...] = ()


def promote(
    name: str,
    version: str,
    settings: Settings,
    *,
    alias: str = CHAMPION,
    gates_file: Path | None = None,
    data: str = "",
    force: bool = False,
    reason: str = "",
    batch_size: int = 64,
) -> Decision:
    """Judge version ``version`` against whom ``alias`` names now, and move the alias on PROMOTE only.

    HOLD is an answer, not an error: see the entry's verdict. Raises :class:`HoldError` only where another process moved
    the alias meanwhile (recorded too), :class:`UsageError` for a force without a reason or where no data set is named,
    :class:`ServiceError` where the registry stops answering: then the same call, made again, takes up where it stopped.
    """
    alias = known_alias(alias)
    if force and not reason.strip():
        raise UsageError("A forced promotion needs a reason.", mend='Add --reason "…"; it is kept in the ledger.')
    desk = open_desk(name, settings)
    with asking(settings, "read the ledger"):
        entries = settle_earlier(desk, alias)
        found = version_or_none(desk.client, name, version)
    entry = Entry(
        kind="promote",
        verdict="HOLD",
        alias=alias,
        version_from=standing(entries, alias),
        version_to=version,
        why=reason,
        data=data,
    )
    if found is None:
        why = f"version {version} of {name} does not exist; it was deleted or never registered"
        return Decision(entry=record(desk, entry.model_copy(update={"reasons": (why,)})))
    if entry.version_from == version:
        return Decision(entry=entry, already=True, notes=(f"Version {version} is the {alias} already.",))
    # a candidate needs no proof; whoever becomes champion does
    unproven = Proof(fields={}, reasons=(), notes=("Not judged: the gates stand before champion.",))
    proof = unproven if alias == CHALLENGER else _prove(desk, entry, gates_file, force, batch_size)
    verdict = "PROMOTE" if not proof.reasons else "FORCED" if force else "HOLD"
    entry = entry.model_copy(update={**proof.fields, "verdict": verdict, "reasons": proof.reasons})
    entry = record(desk, entry) if verdict == "HOLD" else move(desk, entry, last_move(entries, alias))
    return Decision(entry=entry, judgement=proof.judgement, notes=proof.notes)


def _prove(desk: Desk, entry: Entry, gates_file: Path | None, force: bool, batch_size: int) -> Proof:
    """Evaluate and judge; with ``force`` whatever cannot be judged becomes a recorded reason."""
    try:
        return _judge(desk, entry, gates_file, batch_size)
    except HeimdallError as error:
        if not force or isinstance(error, ServiceError):
            raise
        return Proof(fields={}, reasons=(f"could not be judged: {error.message}",))


def _judge(desk: Desk, entry: Entry, gates_file: Path | None, batch_size: int) -> Proof:
    settings = desk.settings
    challenger = open_version(desk.name, str(entry.version_to), settings)
    named = gates_file or (Path(settings.heimdall_gates_file) if settings.heimdall_gates_file else None)
    gates = find_gates(challenger.task, named)
    source = entry.data or gates.data
    if not source:
        raise UsageError(
            "No data set is named to judge on.", mend="Add --data FOLDER (or s3://…), or set data in the gates file."
        )
    ours, theirs = evaluate(challenger, source, settings, batch_size), None
    problem: tuple[str, ...] = ()
    if entry.version_from is None:
        notes = ["There is no champion to compare with: the limits alone decide."]
    else:
        notes = _changed(desk.ledger.entries(), source, ours)
        try:
            champion = open_version(desk.name, entry.version_from, settings)
            theirs = evaluate(champion, source, settings, batch_size)
        except DataError as error:
            problem = (f"the champion, version {entry.version_from}, cannot be evaluated: {error.message}",)
    judgement = judge(gates, ours, theirs)
    return Proof(
        fields=_facts(gates, source, ours, judgement),
        reasons=(*judgement.reasons, *problem),
        judgement=judgement,
        notes=tuple(notes),
    )


def _changed(entries: Sequence[Entry], source: str, ours: Figures) -> list[str]:
    earlier = [entry for entry in entries if entry.data == source and entry.data_digest]
    if not earlier or earlier[-1].data_digest == ours.digest:
        return []
    return [
        f"The data set changed since entry {earlier[-1].number} of the ledger; both models were evaluated on it anew."
    ]


def _facts(gates: Gates, source: str, ours: Figures, judgement: Judgement) -> dict[str, Any]:
    return {
        "data": source,
        "data_digest": ours.digest,
        "gates_digest": gates.digest,
        "figures": {check.name: (check.challenger, check.champion) for check in judgement.checks},
    }


def rollback(name: str, settings: Settings, *, reason: str = "", to: str = "") -> Decision:
    """Give the alias champion back to who had it before, or to version ``to``; recorded like a promotion.

    Rolling back twice goes back two champions. Raises :class:`DataError` where there is nobody to go back to.
    """
    desk = open_desk(name, settings)
    with asking(settings, "read the ledger"):
        entries = settle_earlier(desk, CHAMPION)
        before = [to] if to else previous(entries, CHAMPION)
        living = [version for version in before if version_or_none(desk.client, name, version) is not None]
    if not living:
        gone = f"; {', '.join(before)} was deleted" if before else ""
        raise DataError(
            f"{name} has no earlier champion to go back to{gone}.", mend=f"See heimdall models history {name}."
        )
    notes = tuple(
        f"Version {version} was champion later, but is deleted." for version in before[: before.index(living[0])]
    )
    entry = Entry(
        kind="rollback",
        verdict="ROLLBACK",
        alias=CHAMPION,
        version_from=standing(entries, CHAMPION),
        version_to=living[0],
        why=reason,
    )
    if entry.version_from == living[0]:
        return Decision(entry=entry, already=True, notes=(f"Version {living[0]} is the champion already.",))
    return Decision(entry=move(desk, entry, last_move(entries, CHAMPION)), notes=notes)


def history(name: str, settings: Settings) -> list[Entry]:
    """All entries of the model's ledger, oldest first, after finishing what was left half done."""
    desk = open_desk(name, settings)
    with asking(settings, "read the ledger"):
        settle_earlier(desk, CHALLENGER)
        return settle_earlier(desk, CHAMPION)
