"""For tasks that train in several processes: figures that need the whole set, and random numbers for one's own share.

Process ``r`` of ``W`` holds the samples r, r + W, r + 2W, … of the order that one process would have.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def world() -> tuple[int, int]:
    """(rank, number of processes) of the training at hand."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor) -> Tensor:
    """(n, …) of this process → (n of all, …) in the order in which one process would have had them.

    All processes must call it; their shares may differ by a row.
    """
    rank, count = world()
    if count == 1:
        return rows
    sizes = torch.zeros(count, dtype=torch.int64, device=rows.device)
    sizes[rank] = len(rows)
    distributed.all_reduce(sizes)
    longest = int(sizes.max())
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(count)]
    distributed.all_gather(parts, padded)
    together = torch.stack(parts, dim=1).flatten(0, 1)
    kept = (torch.arange(longest, device=rows.device)[:, None] < sizes).flatten()
    return together[kept]


def own_rows(draw: Tensor) -> Tensor:
    """Of numbers drawn alike in all processes for the samples of all of them, those for this process's samples."""
    rank, count = world()
    return draw[rank::count]
