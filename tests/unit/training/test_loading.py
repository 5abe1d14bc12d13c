from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from heimdall.training.loading import ResumableLoader, read_ahead


class Numbers(Dataset[int]):
    def __init__(self, *, draws_nothing: bool) -> None:
        self.draws_nothing = draws_nothing
        self.readers: set[str] = set()

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> int:
        self.readers.add(threading.current_thread().name.split("_")[0])
        return index


def read(dataset: Numbers, *, done: int) -> tuple[list[list[int]], int]:
    asked: list[int] = []
    loader = ResumableLoader(
        DataLoader(dataset, batch_size=4, shuffle=True),
        seed=3,
        position=lambda: (2, done),
        before_batch=lambda: asked.append(1),
    )
    return [batch.tolist() for batch in loader], len(asked)


@pytest.mark.parametrize("done", [0, 4, 6])
def test_batches_read_ahead_are_the_same_and_looked_at_as_often(done: int) -> None:
    ahead, now = Numbers(draws_nothing=True), Numbers(draws_nothing=False)
    assert read(ahead, done=done) == read(now, done=done)
    assert now.readers <= {"MainThread"}
    assert "MainThread" not in ahead.readers


def test_reading_stops_with_whoever_reads() -> None:
    before = threading.active_count()
    loader = ResumableLoader(
        DataLoader(Numbers(draws_nothing=True), batch_size=4),
        seed=3,
        position=lambda: (0, 0),
        before_batch=lambda: None,
    )
    batches = iter(loader)
    assert isinstance(next(batches), torch.Tensor)
    del batches
    assert threading.active_count() == before


@pytest.mark.parametrize(("size", "ahead"), [(4, 7), (24 * 2**20, 3)])
def test_no_more_is_read_ahead_than_there_is_memory_for(size: int, ahead: int) -> None:
    read: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        for number in range(40):
            read.append(number)
            yield torch.empty(size, dtype=torch.uint8)

    furthest = 0
    for number, _ in enumerate(read_ahead(batches())):
        time.sleep(0.005)
        furthest = max(furthest, len(read) - number - 1)
    assert len(read) == 40
    assert 1 <= furthest <= ahead
