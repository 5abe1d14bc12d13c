"""Orders of samples that a resumed run sees again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Each of ``count`` samples once, in an order that follows from ``seeds`` and the epoch alone."""

    def __init__(self, count: int, *seeds: int) -> None:
        self.count, self.seeds, self.epoch = count, seeds, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls it, after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng([*self.seeds, self.epoch]).permutation(self.count).tolist())
