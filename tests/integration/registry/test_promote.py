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
    assert held.entry.reasons[0].startswith("error/median_deg is ")

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


def test_what_happens_past_the_ledger_is_seen_and_recorded(local: Any, put: Any, beacon: Any, gates: Path) -> None:
    first, second = put(local), put(local)
    judge = {"gates_file": gates, "data": str(beacon().folder)}
    promote(NAME, first, local, **judge)
    client = connect(local)
    client.set_registered_model_alias(NAME, "champion", second)
    assert [entry.verdict for entry in history(NAME, local)] == ["PROMOTE", "OUTSIDE"]
    assert rollback(NAME, local).entry.version_to == first

    client.delete_model_version(NAME, first)  # the champion is gone, and MLflow removes its alias
    decision = promote(NAME, second, local, **judge)
    assert decision.entry.version_from is None
    assert decision.entry.verdict == "PROMOTE"
    assert [entry.verdict for entry in history(NAME, local)][-2:] == ["OUTSIDE", "PROMOTE"]
    gone = promote(NAME, first, local, **judge)
    assert gone.held
    assert "does not exist" in gone.entry.reasons[0]
    with pytest.raises(DataError, match="was deleted"):
        rollback(NAME, local)


def test_data_that_changed_is_told_and_nan_holds(
    local: Any, put: Any, beacon: Any, gates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import toy_beacon

    data = toy_beacon.make_data(tmp_path / "data", seed=5)
    judge = {"gates_file": gates, "data": str(data)}
    first, second = put(local), put(local)
    promote(NAME, first, local, **judge)
    toy_beacon.make_data(data, seed=6)
    decision = promote(NAME, second, local, **judge)
    assert decision.notes == (
        "The data set changed since entry 1 of the ledger; both models were evaluated on it anew.",
    )

    with np.load(data / "beacon.npz") as file:
        content = dict(file)
    content["features"][:40] = np.nan
    np.savez(data / "beacon.npz", **content)
    held = promote(NAME, first, local, **judge)
    assert held.held
    assert any("not a finite number" in reason for reason in held.entry.reasons)


def test_a_champion_that_cannot_be_opened_holds_until_forced(local: Any, put: Any, beacon: Any, gates: Path) -> None:
    import shutil

    first, second = put(local), put(local)
    judge = {"gates_file": gates, "data": str(beacon().folder)}
    promote(NAME, first, local, **judge)
    client = connect(local)
    source = client.get_model_version(NAME, first).source.removeprefix("models:/")
    shutil.rmtree(client.get_logged_model(source).artifact_location)
    shutil.rmtree(local.cache_dir / "models")
    held = promote(NAME, second, local, **judge)
    assert held.held
    assert "cannot be evaluated" in held.entry.reasons[0]
    assert champion(local) == first
    assert promote(NAME, second, local, force=True, reason="the files are lost", **judge).entry.verdict == "FORCED"
    assert champion(local) == second


def test_the_tracker_of_the_public_face_takes_the_gates_on_the_way_to_production(
    local: Any, put: Any, beacon: Any, gates: Path
) -> None:
    import heimdall
    from heimdall.errors import HoldError

    good, bad = put(local, 1.0), put(local, 0.2)
    named = gates.with_name("with-data.toml")
    named.write_text(f"data = '{beacon().folder}'\n" + gates.read_text())
    settings = local.model_copy(update={"heimdall_gates_file": str(named)})
    tracker = heimdall.initialize_mlflow(settings)
    tracker.transition_model_stage(NAME, good, "Production")
    with pytest.raises(HoldError, match="was held back: error/median_deg is"):
        tracker.transition_model_stage(NAME, bad, "Production")
    assert champion(settings) == good
    assert stages(settings)[good] == "Production"
    assert [entry.verdict for entry in history(NAME, settings)] == ["PROMOTE", "HOLD"]


def test_whoever_moves_the_alias_after_the_gate_is_not_written_over(
    local: Any, put: Any, beacon: Any, gates: Path
) -> None:
    from heimdall.registry.gatekeeper import stage_gate
    from heimdall.tracking.tracker import MLflowTracker

    ours, theirs = put(local), put(local)
    data = str(beacon().folder)

    def gate(name: str, version: str) -> None:
        stage_gate(local, gates, data)(name, version)
        promote(NAME, theirs, local, gates_file=gates, data=data)  # somebody else, a millisecond later

    MLflowTracker(local, gate=gate).transition_model_stage(NAME, ours, "Production")
    assert champion(local) == theirs
    assert stages(local) == {ours: "Archived", theirs: "Production"}
    assert [entry.verdict for entry in history(NAME, local)] == ["PROMOTE", "PROMOTE"]


def test_a_challenger_waits_in_staging_and_the_stage_follows_it_into_production(
    local: Any, put: Any, beacon: Any, gates: Path
) -> None:
    first, second = put(local, 0.95), put(local)
    judge = {"gates_file": gates, "data": str(beacon().folder)}
    promote(NAME, first, local, **judge)
    waiting = promote(NAME, second, local, alias="challenger")
    assert waiting.entry.moved
    assert waiting.notes == ("Not judged: the gates stand before champion.",)
    assert stages(local) == {first: "Production", second: "Staging"}
    promote(NAME, second, local, **judge)
    assert stages(local) == {first: "Archived", second: "Production"}
    entries = history(NAME, local)
    assert [(entry.alias, entry.version_to) for entry in entries] == [
        ("champion", first),
        ("challenger", second),
        ("champion", second),
    ]


def test_without_the_gate_a_stage_moves_unjudged_and_the_ledger_notices(local: Any, put: Any) -> None:
    import heimdall

    bad = put(local, 0.2)
    heimdall.initialize_mlflow(local, gated=False).transition_model_stage(NAME, bad, "Production")
    assert (champion(local), stages(local)) == (bad, {bad: "Production"})
    assert [entry.verdict for entry in history(NAME, local)] == ["OUTSIDE"]
