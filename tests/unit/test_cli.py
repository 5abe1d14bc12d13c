from __future__ import annotations

import errno
import subprocess
import sys

import click
import pytest

from heimdall import cli
from heimdall.errors import ConfigError, DataError, HeimdallError, OutputError, ServiceError, StoppedBySignal


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
from heimdall import cli
try:
    cli.main({words!r})
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"torch", "lightning", "mlflow", "pydantic", "numpy", "pandas", "sqlalchemy", "rich", "structlog"}}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""
    assert "HEAVY []" in python(code)


@pytest.mark.parametrize("words", [["train", "--help"], ["train", "localization", "--help"]])
def test_help_of_a_task_imports_neither_torch_nor_mlflow(words: list[str]) -> None:
    code = f"""
import sys
from heimdall import cli
try:
    cli.main({words!r})
except SystemExit as end:
    assert end.code == 0, end.code
print("HEAVY", sorted({{"torch", "lightning", "mlflow", "pandas"}} & set(sys.modules)))
"""
    said = python(code)
    assert "HEAVY []" in said
    assert "localization" in said


def run(monkeypatch: pytest.MonkeyPatch, error: BaseException | None, *words: str) -> int:
    @click.command()
    def failing() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(cli.Lazy, "get_command", lambda *_: failing)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *words])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ConfigError("This is wrong.", mend="Do that."), 2, "heimdall: This is wrong. Do that.\n"),
        (DataError("No data."), 65, "heimdall: No data.\n"),
        (ServiceError("No server."), 69, "heimdall: No server.\n"),
        (OutputError("No disk."), 74, "heimdall: No disk.\n"),
        (HeimdallError("Hm."), 1, "heimdall: Hm.\n"),
        (StoppedBySignal(15), 143, "heimdall: Stopped by SIGTERM.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            74,
            "heimdall: There is no space left at /x/y. Free some, or name another folder with --output-dir.\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/x/y"),
            74,
            "heimdall: Writing is not permitted at /x/y. Change its permissions, "
            "or name another folder with --output-dir.\n",
        ),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_an_error_is_one_sentence_and_its_exit_code(
    error: BaseException,
    code: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, error) == code
    assert capsys.readouterr().err == sentence


def test_a_traceback_is_shown_only_with_debug_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, ValueError("hm")) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("HEIMDALL_DEBUG", "")
    assert run(monkeypatch, ValueError("hm"), "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_password_in_an_error_is_hidden(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, ValueError("postgresql://me:hunter22@host/db refused"))
    assert "hunter22" not in capsys.readouterr().err


def test_an_unknown_option_is_usage_and_names_close_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "localization", "--learning-rte", "1"])
    assert end.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


def test_an_unknown_task_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "cooking"])
    assert end.value.code == 2
    assert "localization, ptychography" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_in_the_list_is_there(name: str) -> None:
    assert isinstance(cli.Lazy().get_command(click.Context(cli.cli), name), click.Command)
