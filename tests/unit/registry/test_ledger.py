from __future__ import annotations

import json
from typing import Any

from heimdall.registry.ledger import LONGEST, Entry, _fit, is_dead, previous, standing


def entries(*steps: tuple[str, str | None, str | None]) -> list[Entry]:
    made = []
    for number, (kind, before, after) in enumerate(steps, 1):
        verdict: Any = {"promote": "PROMOTE", "rollback": "ROLLBACK", "outside": "OUTSIDE"}[kind]
        made.append(
            Entry(
                kind=kind,  # type: ignore[arg-type]
                verdict=verdict,
                alias="champion",
                version_from=before,
                version_to=after,
                number=number,
                outcome="moved now by x",
            )
        )
    return made


def test_going_back_twice_goes_back_two_champions() -> None:
    ledger = entries(("promote", None, "1"), ("promote", "1", "2"), ("promote", "2", "3"))
    assert previous(ledger, "champion") == ["2", "1"]
    ledger += entries(("rollback", "3", "2"))
    assert previous(ledger, "champion") == ["1"]
    ledger += entries(("rollback", "2", "1"))
    assert previous(ledger, "champion") == []
    ledger += entries(("promote", "1", "4"))
    assert previous(ledger, "champion") == ["1"]


def test_a_champion_from_before_the_ledger_can_be_gone_back_to() -> None:
    assert previous(entries(("promote", "7", "8")), "champion") == ["7"]


def test_a_move_that_was_given_up_counts_for_nothing() -> None:
    ledger = entries(("promote", None, "1"), ("promote", "1", "2"))
    ledger[1] = ledger[1].model_copy(update={"outcome": "abandoned now by y"})
    assert standing(ledger, "champion") == "1"
    assert previous(ledger, "champion") == []


def test_an_entry_always_fits_into_a_parameter_and_stays_readable() -> None:
    entry = Entry(
        kind="promote",
        verdict="HOLD",
        alias="champion",
        version_from="1",
        version_to="2",
        why="ü" * 9000,
        reasons=tuple(f"reason {index} " * 100 for index in range(20)),
        figures={f"metric/{index}": (1.0, 2.0) for index in range(400)},
    )
    text = _fit(entry)
    assert len(text) <= LONGEST
    assert json.loads(text)["version_to"] == "2"


def test_an_entry_of_a_finished_process_on_this_machine_is_dead_and_of_another_machine_is_not_known() -> None:
    entry = entries(("promote", None, "1"))[0]
    host = entry.process.rpartition(":")[0]
    assert is_dead(entry.model_copy(update={"process": f"{host}:4194304"}))
    assert not is_dead(entry.model_copy(update={"process": "elsewhere:1"}))
