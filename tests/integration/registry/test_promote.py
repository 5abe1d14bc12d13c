"""Proof before production, and a way back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from heimdall.errors import DataError
from heimdall.registry.client import alias_target, connect
from heimdall.registry.promote import history, promote, rollback

NAME = "heimdall-beacon"


def champion(settings: Any) -> str | None:
    held = alias_target(connect(settings), NAME, "champion")
    return None if held is None else str(held.version)


def stages(settings: Any) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {str(v.version): v.current_stage for v in connect(settings).search_model_versions(f"name='{NAME}'")}


def test_the_way_of_a_model_from_first_champion_to_rollback(local: Any, put: Any, beacon: Any, gates: Path) -> None:
    data = str(beacon().folder)
    good, bad = put(local, 0.95), put(local, 0.2)
    better = put(local, 1.0)
    judge = {"gates_file": gates, "data": data}

    first = promote(NAME, good, local, **judge)
    assert (first.entry.verdict, champion(local)) == ("PROMOTE", good)
    assert first.notes == ("There is no champion to compare with: the limits alone decide.",)

    held = promote(NAME, bad, local, **judge)
    assert (held.entry.verdict, champion(local)) == ("HOLD", good)
    assert held.entry.reasons[0].startswith("error/median_deg: at most 0.2")

    second = promote(NAME, better, local, **judge)
    assert (second.entry.verdict, champion(local)) == ("PROMOTE", better)
    ours, theirs = second.entry.figures["error/median_deg"]
    assert ours < theirs
    assert stages(local) == {good: "Archived", bad: "None", better: "Production"}
    assert promote(NAME, better, local, **judge).already

    forced = promote(NAME, bad, local, force=True, reason="the judge is on holiday", **judge)
    assert (forced.entry.verdict, champion(local)) == ("FORCED", bad)

    assert rollback(NAME, local, reason="it is bad").entry.version_to == better
    assert champion(local) == better
    assert rollback(NAME, local).entry.version_to == good
    assert champion(local) == good
    with pytest.raises(DataError, match="no earlier champion"):
        rollback(NAME, local)

    entries = history(NAME, local)
    assert [entry.verdict for entry in entries] == ["PROMOTE", "HOLD", "PROMOTE", "FORCED", "ROLLBACK", "ROLLBACK"]
    assert entries[3].why == "the judge is on holiday"
    assert all(entry.who and entry.when for entry in entries)
    assert entries[1].data_digest == entries[2].data_digest != ""
