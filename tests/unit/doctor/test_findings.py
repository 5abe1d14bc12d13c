from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from heimdall.doctor.findings import Finding, examine
from heimdall.doctor.host import check_gpu, check_home, check_shared_memory
from heimdall.doctor.tracking import clock
from heimdall.settings import Settings


@pytest.mark.parametrize(
    ("behind_seconds", "status"), [(0, "ok"), (60, "warning"), (3600, "failed"), (-3600, "failed")]
)
def test_a_clock_is_judged_by_what_it_breaks(behind_seconds: int, status: str) -> None:
    (finding,) = clock(formatdate(time.time() - behind_seconds, usegmt=True), "tracking server")
    assert finding.status == status


def test_a_reply_without_a_date_says_nothing_about_the_clock() -> None:
    assert list(clock("", "tracking server")) == []


def test_an_error_that_no_check_foresaw_is_a_finding_and_hides_no_other() -> None:
    def check() -> Iterator[Finding]:
        yield Finding(name="first", status="ok", said="fine")
        raise RuntimeError("boom\nwith a second line")

    first, second = examine("whole", check)
    assert first.status == "ok"
    assert second.status == "failed"
    assert second.said == "could not be checked: boom"


def test_a_line_never_shows_a_password() -> None:
    finding = Finding(name="x", status="failed", said="postgresql://me:hunter2@db/x is closed", mend="see http://a:b@c")
    assert "hunter2" not in finding.line()
    assert ":b@" not in finding.line()


def test_a_home_that_cannot_be_written_fails_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    (finding,) = check_home(Settings(_env_file=None, heimdall_home=tmp_path / "taken"))
    assert finding.status == "failed"
    assert str(tmp_path / "taken") in finding.said
    assert "HEIMDALL_HOME" in finding.mend


def test_a_home_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    statuses = {finding.status for finding in check_home(Settings(_env_file=None, heimdall_home=tmp_path / "home"))}
    assert "failed" not in statuses
    assert list((tmp_path / "home").iterdir()) == []


def test_missing_shared_memory_is_not_an_error(tmp_path: Path) -> None:
    (finding,) = check_shared_memory(tmp_path / "none")
    assert finding.status == "skipped"


def test_a_missing_gpu_fails_only_where_one_is_needed() -> None:
    import torch

    if torch.cuda.is_available():
        assert all(finding.status == "ok" for finding in check_gpu(needed=True))
        return
    assert all(finding.status in {"skipped", "warning"} for finding in check_gpu(needed=False))
    assert all(finding.status == "failed" and finding.mend for finding in check_gpu(needed=True))
