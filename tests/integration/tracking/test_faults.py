"""Nothing is lost and nothing arrives twice, whoever dies: real trainers, couriers, MLflow, PostgreSQL and S3.

Each test ends with ``heimdall sync`` and a comparison of everything that was logged with everything the servers hold.
HEIMDALL_FAULT_ROUNDS sets how many random moments are tried (default 2; the full figure is 50).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heimdall.tracking.cursor import Cursor

pytestmark = [pytest.mark.fault, pytest.mark.xdist_group("faults")]
ROUNDS = int(os.environ.get("HEIMDALL_FAULT_ROUNDS", "2"))
AT_ONCE = 5


def wait_for_status(rig: Any, trainer: Any, status: str, timeout_seconds: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while Cursor.load(trainer.journal).status != status or not Cursor.load(trainer.journal).done:
        assert time.monotonic() < deadline, rig.heimdall("status").stdout
        time.sleep(0.1)


def test_server_down_for_the_whole_run_and_returning_and_killed_in_the_midst(rig: Any, site: Any) -> None:
    midst = rig.train(300, 0.01)
    midst.wait_for_steps(100)
    site.mlflow.kill()
    whole = rig.train(200, 0.0)
    printed = whole.end()
    assert "No tracking server answers yet" in printed
    assert "not delivered yet" in printed
    midst.end()
    waiting = [json.loads(line) for line in rig.heimdall("status", "--json").stdout.splitlines()]
    assert {row["run_key"] for row in waiting} == {midst.key, whole.key}
    assert all(row["why"] and row["waiting_bytes"] for row in waiting)
    refused = rig.heimdall("sync", "--timeout-seconds", "3", check=False)
    assert refused.returncode == 69
    assert "2 of 2 journals are not delivered yet" in refused.stderr
    site.mlflow.start()
    rig.heimdall("sync")
    rig.compare(midst, status="FINISHED")
    rig.compare(whole, status="FINISHED")
    assert "Nothing is waiting" in rig.heimdall("status").stdout


def test_server_that_comes_up_during_the_run_gets_all_of_it_without_a_sync(rig: Any, site: Any) -> None:
    site.proxy.set("503")
    trainer = rig.train(3000, 0.01, HEIMDALL_END_WAIT_SECONDS="60")
    trainer.wait_for_steps(100)
    assert Cursor.load(trainer.journal).run_id == ""
    site.proxy.set("pass")
    while not Cursor.load(trainer.journal).run_id:
        trainer.wait_for_steps(len(trainer.noted("step")) + 1)
    trainer.process.send_signal(signal.SIGUSR1)  # enough steps
    trainer.end()
    assert trainer.noted("undelivered") == ["0"]
    rig.compare(trainer, status="FINISHED")


@pytest.mark.parametrize("mode", ["hang", "429", "503"])
def test_server_that_answers_badly(rig: Any, site: Any, mode: str) -> None:
    trainer = rig.train(400, 0.01)
    trainer.wait_for_steps(100)
    site.proxy.set(mode)
    trainer.wait_for_steps(200)
    before = time.monotonic()
    trainer.wait_for_steps(300)
    assert time.monotonic() - before < 5.0, "training waits for the server"
    site.proxy.set("pass")
    trainer.end()
    rig.heimdall("sync")
    rig.compare(trainer, status="FINISHED")


def test_replies_that_are_lost_make_no_second_run(rig: Any, site: Any) -> None:
    site.proxy.set("cut")
    trainer = rig.train(50, 0.05)
    trainer.wait_for_steps(50)
    trainer.end()
    time.sleep(3)
    site.proxy.set("pass")
    rig.heimdall("sync")
    rig.compare(trainer, status="FINISHED")


def test_database_and_object_store_killed(rig: Any, site: Any) -> None:
    trainer = rig.train(600, 0.01)
    trainer.wait_for_steps(100)
    site.postgres.kill()
    trainer.wait_for_steps(200)
    site.postgres.start()
    trainer.wait_for_steps(300)
    site.s3.kill()
    trainer.wait_for_steps(400)
    site.s3.start()
    trainer.end()
    rig.heimdall("sync")
    rig.compare(trainer, status="FINISHED")


def test_everything_stops_at_once_as_with_the_machine(rig: Any, site: Any) -> None:
    trainer = rig.train(5000, 0.005)
    trainer.wait_for_steps(150)
    trainer.process.kill()
    trainer.kill_courier()
    for server in (site.mlflow, site.s3, site.postgres):
        server.kill()
    trainer.kill()
    site.revive()
    # the next run on this machine delivers what this one left
    later = rig.train(5, 0.0, HEIMDALL_END_WAIT_SECONDS="60")
    later.end()
    wait_for_status(rig, trainer, "FAILED")
    rig.heimdall("sync")
    rig.compare(trainer, status="FAILED")
    rig.compare(later, status="FINISHED")


def rounds(rig: Any, kill: Any, steps: int, status: str) -> list[Any]:
    """Trainers at random moments of their lives, some at once; whatever dies is left to the couriers and one sync."""
    made = []
    chance = random.Random(20261121)
    for first in range(0, ROUNDS, AT_ONCE):
        some = [rig.train(steps, 0.001) for _ in range(min(AT_ONCE, ROUNDS - first))]
        for trainer in some:
            trainer.wait_for_steps(1)
        for trainer in some:
            time.sleep(chance.uniform(0.0, 2.0) / len(some))
            kill(trainer, chance)
        made += some
    for trainer in made:
        trainer.end()
    rig.heimdall("sync")
    for trainer in made:
        rig.compare(trainer, status=status)
    return made


@pytest.mark.timeout(3000)
def test_trainer_killed_at_random_moments(rig: Any) -> None:
    def kill(trainer: Any, _chance: random.Random) -> None:
        trainer.process.kill()

    for trainer in rounds(rig, kill, 100_000, "FAILED"):
        assert not trainer.noted("end")


@pytest.mark.timeout(3000)
def test_courier_killed_at_random_moments(rig: Any) -> None:
    killed = []

    def kill(trainer: Any, chance: random.Random) -> None:
        for _ in range(3):
            killed.append(trainer.kill_courier())
            time.sleep(chance.uniform(0.0, 0.5))

    rounds(rig, kill, 1000, "FINISHED")
    assert any(killed)


@pytest.mark.timeout(3000)
def test_trainer_and_courier_killed_at_random_moments(rig: Any) -> None:
    def kill(trainer: Any, chance: random.Random) -> None:
        first, second = (trainer.process.kill, trainer.kill_courier)
        if chance.random() < 0.5:
            first, second = second, first
        first()
        time.sleep(chance.uniform(0.0, 0.1))
        second()

    rounds(rig, kill, 100_000, "FAILED")


def test_a_trainer_that_dies_is_seen_by_its_courier(rig: Any) -> None:
    trainer = rig.train(100_000, 0.005)
    trainer.wait_for_steps(50)
    trainer.kill()
    wait_for_status(rig, trainer, "FAILED")
    rig.compare(trainer, status="FAILED")


def test_two_syncs_at_once_the_same_journal_twice_and_a_clock_set_back(rig: Any, site: Any) -> None:
    site.proxy.set("503")
    first = rig.train(1200, 0.0, "--status", "KILLED")
    first.end()
    # the run is taken up again on a machine whose clock is an hour behind
    again = rig.train(300, 0.0, "--resume", first.key, "--first", "1200", "--clock-back", "3600")
    again.end()
    first.kill_courier()
    copy = rig.home / "copied" / first.key
    shutil.copytree(first.journal, copy)
    site.proxy.set("pass")
    command = [str(Path(sys.executable).with_name("heimdall")), "sync"]
    both = [
        subprocess.Popen([*command, *options], env=rig.variables(), cwd=rig.home, stderr=subprocess.PIPE)
        for options in ((), ("--all",))
    ]
    for sync in both:
        _, printed = sync.communicate(timeout=120)
        assert sync.returncode == 0, printed
    rig.compare(first, again, status="FINISHED")
    (copy / "cursor.json").unlink(missing_ok=True)
    rig.heimdall("sync", str(copy))
    rig.compare(first, again, status="FINISHED")


@pytest.fixture
def small_disk(rig: Any, tmp_path: Path) -> Iterator[Path]:
    """A file system of eight MiB; needs the right to mount one. The unit test of the journal does with RLIMIT_FSIZE."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield small
    rig.stop_all()
    subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_full_disk_is_loud_and_training_goes_on(rig: Any, small_disk: Path) -> None:
    trainer = rig.train(2000, 0.005, HEIMDALL_HOME=str(small_disk))
    trainer.wait_for_steps(100)
    fill(small_disk / "filler")
    trainer.wait_for_steps(1500)
    (small_disk / "filler").unlink()
    printed = trainer.end()
    assert "cannot be written: No space left on device" in printed
    # every record waited in memory and was written later; the files that found no space are counted
    lost = int(re.findall(r"lost=(\d+)", printed)[-1])
    assert lost > 10
    rig.home = small_disk
    rig.heimdall("sync")
    rig.compare(trainer, status="FINISHED", lost_files=lost)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def test_a_full_disk_stops_strict_training(rig: Any, small_disk: Path) -> None:
    trainer = rig.train(3000, 0.002, "--strict", HEIMDALL_HOME=str(small_disk))
    trainer.wait_for_steps(20)
    fill(small_disk / "filler")
    printed = trainer.end()
    assert trainer.process.returncode != 0
    assert "OutputError: The journal" in printed
    assert len(trainer.noted("step")) < 3000
