"""The job's model goes into production, is held back, forced, and comes back: as MLflow and its UI show it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from typing import Any

import browser
import compose
import pytest

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

NAME = compose.EXPERIMENT
CHAMPION = f"models:/{NAME}@champion"
HOLDOUT = "s3://heimdall-datasets/holdout"
SESSIONS, FIRST = 60, 300  # the stack's own job trains on sessions 0 to 299
GATES = "printf '%s' 'data = \"{data}\"\n[[metrics]]\nmetric = \"median_m\"\nlimit = {limit}\n' >data/{name}.toml"


def versions(stack: compose.Stack) -> list[str]:
    """Versions of the localization model, oldest first."""
    try:
        found = stack.api(f"model-versions/search?filter=name%3D'{NAME}'").get("model_versions", [])
    except urllib.error.HTTPError:
        return []
    return sorted((version["version"] for version in found), key=int)


def champion(stack: compose.Stack) -> str:
    reply = stack.api(f"registered-models/alias?name={NAME}&alias=champion")
    return str(reply["model_version"]["version"])


def stage(stack: compose.Stack, version: str) -> str:
    return str(stack.api(f"model-versions/get?name={NAME}&version={version}")["model_version"]["current_stage"])


def promote(stack: compose.Stack, version: str, gates: str, *options: str, check: bool = True, user: str = "") -> Any:
    words = ("heimdall", "models", "promote", NAME, version, "--to", "champion", "--gates", f"data/{gates}.toml")
    return stack.run(*words, *options, check=check, USER=user)


@pytest.fixture(scope="module")
def two(stack: compose.Stack, tmp_path_factory: pytest.TempPathFactory, note: Any) -> tuple[str, str]:
    """Two versions to choose from; a hold-out set of the same scene in its bucket, gates beside it."""
    compose.wait_for(lambda: versions(stack), "the job's model is registered", 600)
    if len(versions(stack)) < 2:
        words = ("heimdall", "train", "localization", "--config", "examples/quick.toml", "--epochs", "1")
        stack.run(*words, "--run-name", "second", "--output-dir", "outputs/second")
    folder = tmp_path_factory.mktemp("holdout") / "holdout"
    simulate = [Path(sys.executable).with_name("heimdall"), "simulate", "localization", folder]
    subprocess.run([*simulate, f"--sessions={SESSIONS}", f"--first-session={FIRST}"], check=True, capture_output=True)
    bucket, _, prefix = HOLDOUT.removeprefix("s3://").partition("/")
    store = stack.s3()
    for path in sorted(folder.iterdir()):
        store.upload_file(str(path), bucket, f"{prefix}/{path.name}")
    loose = GATES.format(data=HOLDOUT, limit="1e6", name="loose")
    strict = GATES.format(data=HOLDOUT, limit="1.0", name="strict")
    stack.run("sh", "-c", f"{loose} && {strict}")
    first, *_, last = versions(stack)
    return first, last


def test_a_model_becomes_champion_is_followed_by_force_and_comes_back(
    stack: compose.Stack, two: tuple[str, str], note: Any
) -> None:
    first, second = two
    started = time.monotonic()
    shown = promote(stack, first, "loose", user="ada").stdout
    note(f"heimdall models promote in the stack, {SESSIONS} sessions from a bucket: {time.monotonic() - started:.0f} s")
    assert "median_m" in shown
    assert "PROMOTE" in shown
    assert (champion(stack), stage(stack, first)) == (first, "Production")

    held = promote(stack, second, "strict", check=False)
    assert held.returncode == 3, held.stderr
    assert "asked for: at most 1" in held.stderr
    assert champion(stack) == first

    promote(stack, second, "strict", "--force", "--reason", "the old one fails in the new band")
    assert (champion(stack), stage(stack, second), stage(stack, first)) == (second, "Production", "Archived")

    stack.run("heimdall", "models", "rollback", NAME, "--reason", "complaints from Genova")
    assert (champion(stack), stage(stack, first), stage(stack, second)) == (first, "Production", "Archived")

    entries = json.loads(stack.run("heimdall", "models", "history", NAME, "--json").stdout)
    assert [entry["verdict"] for entry in entries] == ["PROMOTE", "HOLD", "FORCED", "ROLLBACK"]
    assert [entry["version_to"] for entry in entries] == [first, second, second, first]
    assert [entry["why"] for entry in entries][2:] == ["the old one fails in the new band", "complaints from Genova"]
    assert [entry["who"].split("@")[0] for entry in entries] == ["ada", "heimdall", "heimdall", "heimdall"]
    assert len({entry["data_digest"] for entry in entries[:3]}) == 1
    assert ledger(stack)["data"]["params"], "the ledger is a run of MLflow's"


def ledger(stack: compose.Stack) -> dict[str, Any]:
    """The run whose parameters are the ledger."""
    experiment = stack.api("experiments/get-by-name?experiment_name=heimdall-ledger")["experiment"]["experiment_id"]
    search = {"experiment_ids": [experiment], "filter": f"tags.`heimdall.ledger` = '{NAME}'"}
    (found,) = stack.api("runs/search", search)["runs"]
    return dict(found)


def test_the_champion_places_what_lies_in_a_bucket(stack: compose.Stack, two: tuple[str, str]) -> None:
    words = ("heimdall", "predict", "--model", CHAMPION, "--input", HOLDOUT, "--output", "outputs/positions.csv")
    told = stack.run(*words, "--compare").stdout
    assert f"{SESSIONS} rows in outputs/positions.csv" in told
    assert "onnx: " in told
    assert "torch: " in told
    head, *rows = stack.run("cat", "outputs/positions.csv").stdout.split()
    assert head == "session,latitude,longitude,sigma_east_m,sigma_north_m"
    assert [row.split(",")[0] for row in rows] == [f"session-{FIRST + number:05d}" for number in range(SESSIONS)]


def test_runs_are_listed_for_machines(stack: compose.Stack, two: tuple[str, str]) -> None:
    listed = json.loads(stack.run("heimdall", "runs", "list", "--json").stdout)
    assert {run["run_id"] for run in listed} == {run["info"]["run_id"] for run in stack.runs()}
    assert all(run["metrics"] for run in listed if run["status"] == "FINISHED")


def test_people_see_champion_card_pictures_and_ledger(
    stack: compose.Stack, two: tuple[str, str], pictures: Path, tmp_path: Path
) -> None:
    first, run = two[0], ledger(stack)
    drawn = "[...document.images].filter(image => image.src.includes('logged-models') && image.naturalWidth > 300)"
    drawn = f"{drawn}.length > 2"
    with browser.Browser(tmp_path) as chromium:
        chromium.resize(3600)
        page = f"{stack.url}/#/models/{NAME}"
        text = chromium.picture(page, drawn, pictures / "champion.png")
        assert f"Champion: version {first}" in text
        assert "@\N{NO-BREAK SPACE}champion" in text
        text = chromium.picture(f"{page}/versions/{first}", drawn, pictures / "version.png")
        assert "Figures on the test set" in text
        chromium.resize(browser.HEIGHT)
        home = f"{stack.url}/#/experiments/{run['info']['experiment_id']}/runs/{run['info']['run_id']}"
        shown = "document.body && document.body.innerText.includes('complaints from Genova')"
        text = chromium.picture(home, shown, pictures / "ledger.png")
        assert all(verdict in text for verdict in ("PROMOTE", "HOLD", "FORCED", "ROLLBACK"))
