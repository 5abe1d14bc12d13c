"""Batches in an order that follows from the seed alone, from where training stands.

With several processes each takes its share, so that together they see what one would see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler
from torch.utils.data._utils.fetch import _MapDatasetFetcher
from torch.utils.data._utils.pin_memory import pin_memory

from heimdall.training.ahead import ReadAhead

MIX = 0x9E3779B97F4A7C15  # keeps the streams of neighbouring seeds and epochs apart


class SeededSampler(Sampler[int]):
    """Indices in an order that follows from seed and epoch alone.

    With ``world`` processes each takes every ``world``-th index from its ``rank`` on, so that together they see, step
    by step, what one process with the same global batch sees. The order is padded from its start to a whole number of
    rounds.
    """

    def __init__(self, count: int, *, seed: int, shuffle: bool, rank: int = 0, world: int = 1) -> None:
        self.count, self.seed, self.shuffle, self.rank, self.world = count, seed, shuffle, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // self.world)

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed + (self.epoch + 1) * MIX) % 2**63)
            order = torch.randperm(self.count, generator=generator).tolist()
        else:
            order = list(range(self.count))
        order += order[: len(self) * self.world - self.count]
        return iter(order[self.rank :: self.world])


class SkippingBatches(Sampler[list[int]]):
    """Batches of another sampler without the first ``skip``; those are never loaded."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.skip = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        batches: Iterator[list[int]] = iter(self.batches)
        for _ in range(self.skip):
            next(batches, None)
        return batches


class ResumableLoader:
    """A training loader that starts where training stands, and lets ``before_batch`` look in between batches.

    Between two batches everything about the one before is done: optimizer, schedulers, logging, validation. That is
    the one moment a checkpoint can be taken of which resuming is exact.

    ``position()`` is (epoch, batches already done in it); it is asked when the first batch is fetched.
    """

    def __init__(
        self,
        loader: Any,
        *,
        seed: int,
        position: Callable[[], tuple[int, int]],
        before_batch: Callable[[], None],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._position, self._before_batch = position, before_batch
        self._skipping: SkippingBatches | None = None
        self._ahead: ReadAhead | None = None
        self._loader = loader
        if type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset) and loader.batch_sampler:
            self._skipping = SkippingBatches(_seeded(loader, seed, rank, world))
            self._loader = _rebuilt(loader, self._skipping)
            if not loader.num_workers and _may_be_read_ahead(loader.dataset, self._skipping.batches):
                self._ahead = ReadAhead(self._read)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        epoch, done = self._position()
        if self._ahead is not None:
            # as iterating over a loader does: what is drawn later is the same whoever reads
            torch.empty((), dtype=torch.int64).random_(generator=self._loader.generator)
            batches = self._ahead.batches(epoch, done)
        else:
            self._set(epoch, done)
            batches = iter(self._loader)
        if self._skipping is None:
            # a loader of another kind: its first batches are fetched and dropped
            for _ in range(done):
                next(batches, None)
        while True:
            self._before_batch()
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def close(self) -> None:
        """Read no more."""
        if self._ahead is not None:
            self._ahead.close()

    def _set(self, epoch: int, done: int) -> None:
        for part in self._parts():
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
        if self._skipping is not None:
            self._skipping.skip = done

    def _read(self, epoch: int, done: int) -> Iterator[Any]:
        # in the thread, so not by iterating over the loader, which draws a random number
        self._set(epoch, done)
        fetcher: Any = _MapDatasetFetcher(self._loader.dataset, True, self._loader.collate_fn, False)
        pins = self._loader.pin_memory and torch.accelerator.is_available()
        for indices in self._skipping or ():
            batch = fetcher.fetch(indices)
            yield pin_memory(batch) if pins else batch  # type: ignore[no-untyped-call]

    def _parts(self) -> list[Any]:
        batches = self._skipping.batches if self._skipping else getattr(self._loader, "batch_sampler", None)
        dataset = getattr(self._loader, "dataset", None)
        return [self._loader, dataset, batches, getattr(batches, "sampler", getattr(self._loader, "sampler", None))]


def _may_be_read_ahead(dataset: Any, batches: Any) -> bool:
    # A data set may say that reading it draws no random numbers, and an order that is told the epoch follows from it:
    # then it does not matter when they are asked.
    sampler = getattr(batches, "sampler", None)
    return bool(getattr(dataset, "draws_nothing", False)) and hasattr(sampler, "set_epoch")


class _EveryNth(Sampler[int]):
    """One process's share of a sampler that we do not know."""

    def __init__(self, sampler: Any, rank: int, world: int) -> None:
        self.sampler, self.rank, self.world = sampler, rank, world

    def set_epoch(self, epoch: int) -> None:
        if callable(set_epoch := getattr(self.sampler, "set_epoch", None)):
            set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.world)

    def __iter__(self) -> Iterator[int]:
        order = list(self.sampler)
        order += order[: len(self) * self.world - len(order)]
        return iter(order[self.rank :: self.world])


class Shares(Sampler[list[int]]):
    """One process's batches of a validation set: every sample in one process, as many batches in each."""

    def __init__(self, sampler: Any, batch_size: int, rank: int, world: int) -> None:
        self.sampler, self.batch_size, self.rank, self.world = sampler, batch_size, rank, world

    def __len__(self) -> int:
        return max(1, -(-(len(self.sampler) // self.world) // self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        own, size, last = order[self.rank :: self.world] or order[:1], self.batch_size, len(self) - 1
        for number in range(last):
            yield own[number * size : (number + 1) * size]
        yield own[last * size :]


def shared(loader: Any, rank: int, world: int) -> Any:
    """A validation loader with this process's share; one of a kind we do not know is run whole by every process."""
    if world == 1 or type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return loader
    if type(loader.batch_sampler) is not BatchSampler or not loader.batch_size:
        return loader
    return _rebuilt(loader, Shares(loader.batch_sampler.sampler, loader.batch_size, rank, world))


def _seeded(loader: DataLoader[Any], seed: int, rank: int, world: int) -> Any:
    """The loader's batches, in an order that follows from seed and epoch. Samplers we do not know keep their order."""
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler:
        return batches
    sampler: Any = batches.sampler
    shuffled = isinstance(sampler, RandomSampler) and not sampler.replacement
    if shuffled or isinstance(sampler, SequentialSampler):
        sampler = SeededSampler(len(sampler), seed=seed, shuffle=shuffled, rank=rank, world=world)
    elif world > 1:
        sampler = _EveryNth(sampler, rank, world)
    return BatchSampler(sampler, batches.batch_size, batches.drop_last)


def _rebuilt(loader: DataLoader[Any], batches: SkippingBatches | Shares) -> DataLoader[Any]:
    kept = ["num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context"]
    kept += ["generator", "prefetch_factor", "persistent_workers", "in_order"]
    return DataLoader(loader.dataset, batch_sampler=batches, **{name: getattr(loader, name) for name in kept})
