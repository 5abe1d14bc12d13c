"""Scans as tensors in memory, served as groups of overlapping patterns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from heimdall.errors import DataError
from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.config import PtychographyConfig
from heimdall.tasks.ptychography.grouping import group_patterns
from heimdall.tasks.ptychography.module import Groups
from heimdall.tasks.ptychography.scan import Scan, read_scan
from heimdall.tasks.sampling import EpochSampler

ASSUMED_PHOTONS = 1e5


class GroupDataset(Dataset[Groups]):
    """Groups of a scan. A whole batch is indexed at once: one gather, no collating."""

    draws_nothing = True  # the next batch may be read while training is busy with this one

    def __init__(self, scan: Scan, groups: npt.NDArray[np.int64], photon_scale: float) -> None:
        self.scan, self.groups = scan, groups
        scale = physics.amplitude_scale(scan.patterns)
        self.measured = physics.to_corner(torch.from_numpy(scan.patterns) * scale).contiguous()
        self.photon_scale = photon_scale
        centres = np.column_stack([scan.y, scan.x])
        corners, self.remainders = physics.split_positions(centres, scan.size)
        members = corners[groups]
        # offsets from the group's mean position, as whole pixels
        self.offsets = members - np.rint(members.mean(axis=1, keepdims=True)).astype(np.int64)
        self.canvas = scan.size

    @cached_property
    def log_factorials(self) -> Tensor:
        """Sum over pixels of ln k! for each pattern (M,): the part of the loss that never changes."""
        return torch.lgamma((self.measured * self.photon_scale).square() + 1).sum((-2, -1))

    @property
    def spread(self) -> int:
        """Pixels by which a group's windows reach beyond the middle one on each side; a multiple of 4."""
        return -(-int(np.abs(self.offsets).max()) // 4) * 4

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Groups:
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> Groups:
        measured, starts, remainders = self.inputs(numbers)
        return Groups(measured, self.log_factorials[self.groups[np.asarray(numbers)]], starts, remainders)

    def inputs(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """What the network sees of these groups: all of :class:`Groups` but what only the loss needs."""
        chosen = np.asarray(numbers)
        members = self.groups[chosen]
        starts = self.offsets[chosen] + (self.canvas - self.scan.size) // 2
        return self.measured[members], torch.from_numpy(starts), torch.from_numpy(self.remainders[members])


def same(batch: Any) -> Any:
    """Batches leave the dataset ready."""
    return batch


class PtychographyData(pl.LightningDataModule):
    """Training scan, and the scan or region that is kept for validation and test."""

    def __init__(self, config: PtychographyConfig) -> None:
        super().__init__()
        if config.train_data_file is None:
            raise DataError("There is no scan to train on.", mend="Give --train_data_file.")
        self.config = config
        whole = read_scan(config.train_data_file)
        self.notes = [f"{config.train_data_file}: {note}." for note in whole.notes]
        if config.test_data_file is not None:
            self.train_scan, self.test_scan = whole, read_scan(config.test_data_file)
            self.notes += [f"{config.test_data_file}: {note}." for note in self.test_scan.notes]
            if self.test_scan.size != whole.size:
                raise DataError(
                    f"The patterns of {config.test_data_file} are {self.test_scan.size} pixels wide, "
                    f"those of {config.train_data_file} {whole.size}."
                )
        else:
            kept = validation_region(whole, self._members, config.validation_fraction)
            self.train_scan = whole.select(np.flatnonzero(~kept))
            self.test_scan = whole.select(np.flatnonzero(kept))
            self.notes.append(
                f"No test file: {kept.sum()} of {len(whole)} patterns, around the middle of the scan, "
                "are kept for validation."
            )
        self.photons = self._photons()
        self.photon_scale = float(np.sqrt(self.photons)) / (whole.size / 2)
        self.train_set, self.test_set = (self._dataset(scan) for scan in (self.train_scan, self.test_scan))
        spread = max(self.train_set.spread, self.test_set.spread)
        self.canvas = whole.size + 2 * spread
        self.train_set.canvas = self.test_set.canvas = self.canvas

    @property
    def _members(self) -> int:
        return self.config.gridsize**2 if self.config.gridsize > 1 else self.config.overlap

    def _dataset(self, scan: Scan) -> GroupDataset:
        config = self.config
        count = config.n_images if scan is self.train_scan else None
        groups = group_patterns(scan, self._members, count=count, neighbours=config.neighbours, seed=config.seed)
        return GroupDataset(scan, groups, self.photon_scale)

    def _photons(self) -> float:
        if self.config.photons is not None:
            return self.config.photons
        if self.train_scan.whole_counts:
            return float(np.mean([np.square(pattern, dtype=np.float64).sum() for pattern in self.train_scan.patterns]))
        self.notes.append(
            f"The squares of the amplitudes are no whole counts: {ASSUMED_PHOTONS:g} photons a pattern are assumed "
            "(--photons says better)."
        )
        return ASSUMED_PHOTONS

    def train_dataloader(self) -> DataLoader[Groups]:
        """Groups in an order drawn anew each epoch."""
        sampler = EpochSampler(len(self.train_set), self.config.seed)
        return self._loader(self.train_set, sampler)

    def val_dataloader(self) -> DataLoader[Groups]:
        """Held-out groups."""
        return self._loader(self.test_set, None)

    def test_dataloader(self) -> DataLoader[Groups]:
        """Held-out groups."""
        return self._loader(self.test_set, None)

    def _loader(self, dataset: GroupDataset, sampler: Sampler[int] | None) -> DataLoader[Groups]:
        workers = self.config.num_workers
        return DataLoader(
            dataset,
            batch_size=self.config.batch_size,
            sampler=sampler,
            collate_fn=same,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def validation_region(scan: Scan, members: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Which patterns (M,) to keep: those nearest to the middle of the scan, so that they overlap one another.

    Raises :class:`~heimdall.errors.DataError` where too few would be left on either side.
    """
    count = max(round(fraction * len(scan)), members, 2)
    if len(scan) - count < max(members, 2):
        raise DataError(
            f"A scan of {len(scan)} patterns is too small to keep {count} of them for validation.",
            mend="Give --test_data_file, or a smaller gridsize or overlap.",
        )
    kept = np.zeros(len(scan), bool)
    # one scan alone, so that a region's patterns are neighbours
    here = np.flatnonzero(scan.index == np.bincount(scan.index - scan.index.min()).argmax() + scan.index.min())
    middle = [(scan.x[here].min() + scan.x[here].max()) / 2, (scan.y[here].min() + scan.y[here].max()) / 2]
    distance = np.hypot(scan.x[here] - middle[0], scan.y[here] - middle[1])
    kept[here[np.argsort(distance, kind="stable")[:count]]] = True
    return kept
