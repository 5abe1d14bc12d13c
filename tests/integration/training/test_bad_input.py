"""What people get wrong: one clear sentence, the right exit code, and nothing that was there is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
SHORT = ["train", "toy", "--epochs", "2", "--samples", "64", "--no-register"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--learning-rate", "-1"], 2, "--learning-rate must be greater than 0, not -1."),
        (["--backbone", "HUGE"], 2, "--backbone must be one of SMALL, LARGE; not 'HUGE'."),
        (["--data", "/nowhere"], 65, "There is no plane.npz in /nowhere."),
        (["--resume", "nothing-like-it"], 2, "There is no run 'nothing-like-it' here."),
        (["--config", "none.toml"], 2, "The config file none.toml cannot be read: No such file or directory."),
        (["--checkpoint-monitor", "val/luck", "--logger", "none"], 2, "val/luck"),
        (["--devices", "two"], 2, "--devices"),
        (["--strategy", "magic", "--logger", "none"], 2, "This cannot be trained as asked:"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    words: list[str], code: int, sentence: str, heimdall: Run, tmp_path: Path
) -> None:
    command = heimdall(*SHORT, "--output-dir", tmp_path / "out", *words)
    assert command.wait() == code
    assert sentence in command.errors
    assert len(command.errors.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_an_unknown_key_in_the_file_is_named(heimdall: Run, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("epoch = 3\n")
    command = heimdall(*SHORT, "--config", tmp_path / "c.toml")
    assert command.wait() == 2
    assert "unknown key 'epoch'. Did you mean epochs?" in command.errors


def test_an_output_folder_that_cannot_be_written_is_named(heimdall: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here stands a file")
    command = heimdall(*SHORT, "--output-dir", tmp_path / "file" / "out")
    assert command.wait() == 2
    assert command.errors == (
        f"heimdall: The output folder {tmp_path}/file/out is not writable: Not a directory. "
        "Choose another --output-dir.\n"
    )


def test_two_runs_do_not_share_a_folder(start: Run, heimdall: Run, tmp_path: Path) -> None:
    words = [*SHORT, "--output-dir", tmp_path / "out", "--logger", "none"]
    first = start(*words, "--step-seconds", 0.3)
    while not (tmp_path / "out" / "run.json").exists():
        assert first.process.is_alive(), first.errors
    second = heimdall(*words)
    assert second.wait() == 2
    assert "Another run is working in" in second.errors
    assert first.wait() == 0


def test_no_space_ends_loudly_and_keeps_the_last_good_checkpoint(heimdall: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = ["--output-dir", output, "--logger", "csv"]
    assert heimdall(*SHORT, *words).wait() == 0
    good = (output / "checkpoints" / "last.ckpt").read_bytes()
    command = heimdall(*SHORT, "--resume", output, "--epochs", 5, "--backbone", "SMALL", FILE_SIZE_LIMIT=str(4000))
    assert command.wait() == 74, command.errors
    assert "There is no space left at" in command.errors
    assert "Traceback" not in command.errors
    assert (output / "checkpoints" / "last.ckpt").read_bytes() == good
    assert not list((output / "checkpoints").glob("*.part"))
    assert json.loads((output / "run.json").read_text())["status"] == "failed"


def test_training_goes_on_when_the_server_refuses_and_says_what_waits(heimdall: Run, tmp_path: Path) -> None:
    where = {
        "HEIMDALL_HOME": str(tmp_path / "home"),
        "MLFLOW_TRACKING_URI": "http://me:hunter22@127.0.0.1:9",
        "HEIMDALL_END_WAIT_SECONDS": "0.5",
    }
    command = heimdall(*SHORT, "--output-dir", tmp_path / "out", **where)
    assert command.wait() == 0, command.errors
    assert (tmp_path / "out" / "bundle" / "model.safetensors").exists()
    said = " ".join(command.output.split())
    assert re.search(r"Not everything has reached the tracking server yet; deliver it with: \S*heimdall sync", said)
    assert "not delivered yet" in command.errors
    assert "hunter22" not in command.output + command.errors

    strict = heimdall(*SHORT, "--output-dir", tmp_path / "out2", "--strict-tracking", **where)
    assert strict.wait() == 75
    assert "heimdall sync" in strict.errors


@pytest.mark.parametrize("uri", ["ftp://somewhere/mlflow", "nonsense"])
def test_a_tracking_uri_of_no_known_kind_is_a_wrong_configuration(uri: str, heimdall: Run, tmp_path: Path) -> None:
    command = heimdall(
        *SHORT, "--output-dir", tmp_path / "out", HEIMDALL_HOME=str(tmp_path / "home"), MLFLOW_TRACKING_URI=uri
    )
    assert command.wait() == 2, command.output
    assert "MLFLOW_TRACKING_URI" in command.errors
    assert "Traceback" not in command.errors


def test_sharding_without_gpus_names_the_strategy_that_needs_none(heimdall: Run, tmp_path: Path) -> None:
    command = heimdall("train", "toy", "--strategy", "fsdp", "--accelerator", "cpu", "--output-dir", tmp_path / "out")
    assert command.wait() == 2
    assert "requires a GPU" in command.errors
    assert "--strategy ddp" in command.errors


def test_a_strategy_that_is_not_installed_is_a_wrong_configuration(heimdall: Run, tmp_path: Path) -> None:
    command = heimdall(
        "train", "toy", "--strategy", "deepspeed", "--accelerator", "cpu", "--output-dir", tmp_path / "o"
    )
    assert command.wait() == 2
    assert "DeepSpeed installed" in command.errors
