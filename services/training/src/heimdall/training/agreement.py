"""What several processes must do together they decide together, without any of them waiting for the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


class Agreement:
    """Answers to yes-or-no questions that all processes see alike, one call later.

    A reduction over the training's own group would make the GPU's queue run dry at every batch. This one goes through
    the CPU, is under way while a batch is trained on, and is there when it is asked for. Every process must make the
    same calls in the same order. With one process an answer comes at once.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._said: torch.Tensor | None = None
        self._work: Any = None

    def any(self, *questions: bool) -> list[bool]:
        """For each question, whether some process said yes to it at the call before."""
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return list(questions)
        if self._group is None:
            self._group = distributed.new_group(backend="gloo")
        answers = self.settle(len(questions))
        self._said = torch.tensor(questions, dtype=torch.int32)
        self._work = distributed.all_reduce(self._said, distributed.ReduceOp.MAX, self._group, async_op=True)
        return answers

    def settle(self, count: int = 0) -> list[bool]:
        """Wait for what is under way; its answers, or as many noes."""
        if self._work is None or self._said is None:
            return [False] * count
        self._work.wait()
        self._work = None
        return [bool(answer) for answer in self._said.tolist()]
