"""Which patterns belong together: a seed pattern and neighbours drawn from its nearest, by KD-tree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from heimdall.errors import DataError
from heimdall.tasks.ptychography.scan import Scan


def group_patterns(
    scan: Scan, members: int, *, count: int | None = None, neighbours: int = 6, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Groups (count, members) of pattern numbers; column 0 is the seed pattern.

    Every pattern is a seed once before any is a seed twice. The others are drawn without replacement from the seed's
    ``neighbours`` nearest in the same scan. One member gives every pattern alone.

    Raises :class:`~heimdall.errors.DataError` where a scan has fewer patterns than a group.
    """
    random = np.random.default_rng([seed, members])
    count = len(scan) if count is None else count
    rounds = -(-count // len(scan))
    # a partial round takes seeds spread over the whole scan
    order = [np.arange(len(scan)) if count == len(scan) else random.permutation(len(scan)) for _ in range(rounds)]
    seeds = np.concatenate(order)[:count]
    if members == 1:
        return seeds[:, None].astype(np.int64)
    nearest = _nearest(scan, members, max(neighbours, members - 1))
    draws = [random.permutation(nearest[seed_pattern])[: members - 1] for seed_pattern in seeds]
    return np.column_stack([seeds, np.stack(draws)]).astype(np.int64)


def _nearest(scan: Scan, members: int, neighbours: int) -> list[npt.NDArray[np.int64]]:
    nearest: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * len(scan)
    for number in np.unique(scan.index):
        here = np.flatnonzero(scan.index == number)
        if len(here) < members:
            raise DataError(
                f"Scan {number} has {len(here)} patterns, fewer than the {members} of a group.",
                mend="Use a smaller gridsize or overlap.",
            )
        points = np.column_stack([scan.y[here], scan.x[here]])
        _, found = KDTree(points).query(points, k=min(neighbours + 1, len(here)))
        for row, pattern in enumerate(here):
            # a pattern is not always its own first neighbour: positions may repeat
            nearest[pattern] = here[found[row][found[row] != row]][:neighbours]
    return nearest
