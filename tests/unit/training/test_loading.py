from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from heimdall.training.ahead import ReadAhead
from heimdall.training.loading import ResumableLoader


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
    torch.manual_seed(6)
    expected, state = read(now, done=done), torch.get_rng_state()
    torch.manual_seed(6)
    assert read(ahead, done=done) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert now.readers <= {"MainThread"}
    assert "MainThread" not in ahead.readers


def test_reading_stops_when_training_is_done() -> None:
    before = threading.active_count()
    loader = ResumableLoader(
        DataLoader(Numbers(draws_nothing=True), batch_size=4),
        seed=3,
        position=lambda: (0, 0),
        before_batch=lambda: None,
    )
    batches = iter(loader)
    assert isinstance(next(batches), torch.Tensor)
    assert threading.active_count() == before + 1
    loader.close()
    assert threading.active_count() == before


def test_an_order_that_nobody_knows_is_not_asked_for_ahead() -> None:
    dataset = Numbers(draws_nothing=True)
    sampler = WeightedRandomSampler([1.0] * 23, 23)  # draws from the global generator whenever it is asked
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    list(ResumableLoader(loader, seed=3, position=lambda: (0, 0), before_batch=lambda: None))
    assert dataset.readers == {"MainThread"}


class Endless:
    """Batches of ``size`` bytes; notes what was read."""

    def __init__(self, size: int, count: int) -> None:
        self.size, self.count = size, count
        self.read: list[tuple[int, int]] = []

    def __call__(self, epoch: int, done: int) -> Iterator[torch.Tensor]:
        for number in range(done, self.count):
            self.read.append((epoch, number))
            yield torch.full((self.size,), number, dtype=torch.uint8)


@pytest.mark.parametrize(("size", "ahead"), [(4, 7), (24 * 2**20, 3)])
def test_no_more_is_read_ahead_than_there_is_memory_for(size: int, ahead: int) -> None:
    read = Endless(size, 40)
    furthest = 0
    for number, _ in enumerate(ReadAhead(read).batches(0, 0)):
        time.sleep(0.005)
        furthest = max(furthest, len(read.read) - number - 1)
    assert {place for place in read.read if place[0] == 0} == {(0, number) for number in range(40)}
    assert 1 <= furthest <= ahead


def test_the_next_epoch_is_begun_before_it_is_asked_for_and_nothing_is_read_twice() -> None:
    read = Endless(4, 5)
    ahead = ReadAhead(read)
    first = [int(batch[0]) for batch in ahead.batches(0, 2)]
    deadline = time.monotonic() + 10
    while (1, 0) not in read.read and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (1, 0) in read.read
    assert (first, [int(batch[0]) for batch in ahead.batches(1, 0)]) == ([2, 3, 4], [0, 1, 2, 3, 4])
    assert len(set(read.read)) == len(read.read)


def test_another_place_than_the_next_is_read_anew() -> None:
    ahead = ReadAhead(Endless(4, 5))
    batches = ahead.batches(0, 0)
    assert int(next(batches)[0]) == 0
    assert [int(batch[0]) for batch in ahead.batches(7, 3)] == [3, 4]


def test_an_error_of_the_reading_thread_is_raised_where_the_batch_is_wanted() -> None:
    def read(epoch: int, done: int) -> Iterator[torch.Tensor]:
        yield torch.zeros(1)
        raise OSError("the disk is gone")

    batches = ReadAhead(read).batches(0, 0)
    with pytest.raises(OSError, match="the disk is gone"):
        list(batches)


def test_reading_ahead_ends_with_an_epoch_that_has_no_batches() -> None:
    def read(epoch: int, done: int) -> Iterator[torch.Tensor]:
        yield from [torch.zeros(1)] if epoch == 0 else []

    ahead = ReadAhead(read)
    assert [len(list(ahead.batches(epoch, 0))) for epoch in (0, 1, 2)] == [1, 0, 0]
    ahead.close()
