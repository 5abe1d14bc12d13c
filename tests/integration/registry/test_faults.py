"""The server goes away between any two steps; two people promote at once."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heimdall.errors import HeimdallError, HoldError, ServiceError
from heimdall.registry.client import alias_target, connect
from heimdall.registry.ledger import Entry
from heimdall.registry.moves import last_move, move, open_desk
from heimdall.registry.promote import history, promote
from heimdall.registry.register import register
from heimdall.registry.store import KEY_TAG
from heimdall.settings import Settings

NAME = "heimdall-beacon"
ROUNDS = int(os.environ.get("HEIMDALL_FAULT_ROUNDS", "4"))
MOST_WRITES = 60

_spec = importlib.util.spec_from_file_location("registry_proxy", Path(__file__).with_name("proxy.py"))
assert _spec is not None
assert _spec.loader is not None
proxy_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(proxy_module)


@pytest.fixture
def wall(own_server: Any) -> Iterator[Any]:
    proxy = proxy_module.Proxy(own_server.url)
    yield proxy
    proxy.stop()


@pytest.fixture
def walled(wall: Any, served: Settings) -> Settings:
    """Settings that reach the server through the wall."""
    return served.model_copy(
        update={"mlflow_tracking_uri": Settings(_env_file=None, mlflow_tracking_uri=wall.url).mlflow_tracking_uri}
    )


def cuts(writes: int) -> list[tuple[int, bool]]:
    """Before which write to cut, and whether the server hears it; ROUNDS of them, or all."""
    places = [(number, deaf) for number in range(writes) for deaf in (True, False)]
    return places[:: max(1, -(-len(places) // ROUNDS))]


def count_writes(wall: Any, action: Callable[[], Any]) -> int:
    wall.reset()
    action()
    assert 0 < wall.writes < MOST_WRITES
    return int(wall.writes)


@pytest.mark.fault
@pytest.mark.slow
def test_a_register_that_is_cut_anywhere_can_be_run_again_and_makes_one_version(
    wall: Any, walled: Settings, beacon: Any, make_run: Any
) -> None:
    trained = beacon()

    def action(run_id: str) -> Any:
        return register(
            trained.task, trained.data, trained.report, run_id=run_id, checkpoint=trained.checkpoint, settings=walled
        )

    run_id = make_run(walled)
    writes = count_writes(wall, lambda: action(run_id))
    for allowed, deaf in cuts(writes):
        wall.reset()
        run_id = make_run(walled)
        wall.reset(allowed, deaf=deaf)
        with pytest.raises(ServiceError, match="run the same command again"):
            action(run_id)
        wall.reset()
        first, again = action(run_id), action(run_id)
        assert first == again
        client = connect(walled)
        versions = [v for v in client.search_model_versions(f"name = '{NAME}'") if v.run_id == run_id]
        assert [str(v.version) for v in versions] == [first.version], (allowed, deaf)
        assert "test/error_deg" in versions[0].description
        run = client.get_run(run_id)
        logged = client.search_logged_models(
            [run.info.experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{versions[0].tags[KEY_TAG]}'"
        )
        assert [str(one.status) for one in logged] == ["READY"], (allowed, deaf)
        assert [output.model_id for output in run.outputs.model_outputs] == [logged[0].model_id]


@pytest.mark.fault
@pytest.mark.slow
def test_a_promotion_that_is_cut_anywhere_is_finished_or_undone_and_always_told(
    wall: Any, walled: Settings, put: Any, beacon: Any, gates: Path
) -> None:
    versions = [put(walled, 1.0), put(walled, 1.0)]
    judge: dict[str, Any] = {"gates_file": gates, "data": str(beacon().folder), "force": True, "reason": "fault test"}
    promote(NAME, versions[0], walled, **judge)
    writes = count_writes(wall, lambda: promote(NAME, versions[1], walled, **judge))
    target = 0
    for allowed, deaf in cuts(writes):
        wall.reset(allowed, deaf=deaf)
        try:
            promote(NAME, versions[target], walled, **judge)
        except ServiceError as error:
            assert "run the same command again" in str(error)  # noqa: PT017 - the last steps only warn
        wall.reset()
        done = promote(NAME, versions[target], walled, **judge)
        entries = history(NAME, walled)
        held = alias_target(connect(walled), NAME, "champion")
        assert held is not None
        assert str(held.version) == versions[target], (allowed, deaf)
        assert done.already or done.entry.moved
        assert not [entry for entry in entries if entry.pending], (allowed, deaf)
        assert not [entry for entry in entries if entry.kind == "outside"], (allowed, deaf)
        assert [entry for entry in entries if entry.moved][-1].version_to == versions[target]
        target = 1 - target


@pytest.mark.parametrize("place", ["local", "served"])
def test_of_two_promotions_at_once_one_is_told(
    place: str, request: pytest.FixtureRequest, put: Any, beacon: Any, gates: Path
) -> None:
    settings: Settings = request.getfixturevalue(place)
    first, second, third = put(settings, 0.97), put(settings, 0.98), put(settings, 0.99)
    judge: dict[str, Any] = {"gates_file": gates, "data": str(beacon().folder)}
    if (alias_target(connect(settings), NAME, "champion")) is None:
        promote(NAME, first, settings, **judge)
    before = len(history(NAME, settings))
    together = threading.Barrier(2)
    outcomes: dict[str, Any] = {}

    def attempt(version: str) -> None:
        desk = open_desk(NAME, settings)
        entries = desk.ledger.entries()
        entry = Entry(kind="promote", verdict="PROMOTE", alias="champion", version_from=first, version_to=version)
        together.wait()  # both have been judged against the same champion
        try:
            outcomes[version] = move(desk, entry, last_move(entries, "champion"))
        except HeimdallError as error:
            outcomes[version] = error

    threads = [threading.Thread(target=attempt, args=(version,)) for version in (second, third)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [version for version, outcome in outcomes.items() if isinstance(outcome, Entry)]
    told = [outcome for outcome in outcomes.values() if isinstance(outcome, HoldError)]
    assert (len(won), len(told)) == (1, 1), outcomes
    assert f"moved champion to version {won[0]}" in str(told[0])
    held = alias_target(connect(settings), NAME, "champion")
    assert held is not None
    assert str(held.version) == won[0]
    assert sorted(entry.verdict for entry in history(NAME, settings)[before:]) == ["OVERTAKEN", "PROMOTE"]


def test_two_who_begin_a_ledger_at_once_write_the_same_one(served: Settings, put: Any) -> None:
    put(served, 1.0)
    together = threading.Barrier(4)
    found: list[str] = []

    def begin() -> None:
        together.wait()
        found.append(open_desk(NAME, served).ledger.run_id)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


@pytest.mark.fault
@pytest.mark.slow
def test_a_killed_server_costs_a_sentence_and_the_same_command_again(
    own_server: Any, served: Settings, put: Any, beacon: Any, gates: Path
) -> None:
    version = put(served, 1.0)
    own_server.kill()
    try:
        with pytest.raises(ServiceError, match="run the same command again"):
            promote(NAME, version, served, gates_file=gates, data=str(beacon().folder))
    finally:
        own_server.start()
    assert promote(NAME, version, served, gates_file=gates, data=str(beacon().folder)).entry.verdict == "PROMOTE"
