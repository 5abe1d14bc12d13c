"""Batches read in a thread while training is busy with those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

MOST_AHEAD, AHEAD_BYTES = 4, 64 * 2**20

Place = tuple[int, int]
"""An epoch, and the number of a batch in it."""


class ReadAhead:
    """The batches of one epoch after another: the first of the next are read while this one is validated.

    Waking a thread costs what a small batch does, so it is asked for several at a time: one, two, then four, as long
    as they fit into :data:`AHEAD_BYTES`. The thread ends with :meth:`close`.
    """

    def __init__(self, read: Callable[[int, int], Iterator[Any]]) -> None:
        """``read(epoch, done)`` gives the batches of an epoch but the first ``done``; the thread calls it."""
        self._read = read
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._stream: Iterator[tuple[Place, Any]] = iter(())
        self._few: deque[tuple[Place, Any]] = deque()
        self._following: Future[list[tuple[Place, Any]]] | None = None
        self._count = 1

    def batches(self, epoch: int, done: int) -> Iterator[Any]:
        """The batches of ``epoch`` from ``done`` on. Raises what reading them raised."""
        if self._next_place() != (epoch, done):
            self._begin(epoch, done)
        while (place := self._next_place()) and place[0] == epoch:
            yield self._few.popleft()[1]  # nothing here holds on to a batch that training is done with

    def close(self) -> None:
        """Let go of the thread and of what it has read."""
        self._pool.shutdown(cancel_futures=True)
        self._few.clear()
        self._following, self._stream = None, iter(())

    def _begin(self, epoch: int, done: int) -> None:
        self._few.clear()
        if self._following is not None:
            self._following.exception()  # the thread is done with the old stream
        self._stream = _endless(self._read, epoch, done)
        self._ask(1)

    def _next_place(self) -> Place | None:
        if not self._few and self._following is not None:
            following, self._following = self._following, None
            self._few.extend(following.result())
            if self._few:
                self._ask(min(2 * self._count, MOST_AHEAD, max(1, AHEAD_BYTES // max(1, _bytes(self._few[0][1])))))
        return self._few[0][0] if self._few else None

    def _ask(self, count: int) -> None:
        self._count = count
        self._following = self._pool.submit(_next_few, self._stream, count)


def _endless(read: Callable[[int, int], Iterator[Any]], epoch: int, done: int) -> Iterator[tuple[Place, Any]]:
    while True:
        number = -1
        for number, batch in enumerate(read(epoch, done), start=done):
            yield (epoch, number), batch
        if number < 0:
            return  # an epoch without batches: there is nothing to read ahead
        epoch, done = epoch + 1, 0


def _next_few(stream: Iterator[tuple[Place, Any]], count: int) -> list[tuple[Place, Any]]:
    return list(islice(stream, count))


def _bytes(batch: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
