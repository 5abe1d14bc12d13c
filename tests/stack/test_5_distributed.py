"""Two training nodes under compose meet, train one model, and leave one run."""

from __future__ import annotations

from typing import Any

import compose
import pytest

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]
NODES = ("training-0", "training-1")


def test_two_nodes_train_one_model_and_leave_one_run(stack: compose.Stack) -> None:
    files = (
        stack.environment["COMPOSE_FILE"],
        "docker-compose.distributed.yml",
        f"{compose.HERE}/docker-compose.distributed.yml",
    )
    both: dict[str, Any] = {"COMPOSE_FILE": ":".join(files), "COMPOSE_PROFILES": "distributed"}
    before = {run["info"]["run_id"] for run in stack.runs()}
    stack.compose("up", "--detach", *NODES, **both)
    try:

        def ended() -> bool:
            states = stack.compose("ps", "--all", "--format", "{{.State}} {{.ExitCode}}", *NODES, **both).stdout.split(
                "\n"
            )
            return [state for state in states if state] == ["exited 0"] * len(NODES)

        try:
            compose.wait_for(ended, "both nodes end", 420)
        except TimeoutError as error:
            raise AssertionError(stack.compose("logs", "--no-color", "--tail", "60", *NODES, **both).stdout) from error
        new = [run for run in stack.runs() if run["info"]["run_id"] not in before]
        assert [run["info"]["status"] for run in new] == ["FINISHED"]
        history = stack.history(new[0]["info"]["run_id"], "train/loss")
        steps = [point["step"] for point in history]
        assert len(steps) == len(set(steps)) > 4
    finally:
        stack.compose("rm", "--stop", "--force", *NODES, **both)
