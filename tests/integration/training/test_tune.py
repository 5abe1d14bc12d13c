from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Run = Callable[..., Any]


def test_tune_measures_and_says_what_to_train_with(heimdall: Run) -> None:
    command = heimdall("tune", "toy", "--samples", 96, "--accelerator", "cpu")
    assert command.wait() == 0, command.errors
    found = re.search(r"Train with: --batch-size (\d+) --num-workers (\d+)", command.output)
    assert found, command.output
    assert int(found[1]) in {8, 16, 32, 64}  # 67 samples to train on
    assert "training step" in command.output


def test_tune_of_an_unknown_task_names_those_there_are(heimdall: Run) -> None:
    command = heimdall("tune", "nothing")
    assert command.wait() == 2
    assert "localization" in command.errors
