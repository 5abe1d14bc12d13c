"""Training, validation and test sessions. Sessions are split by their names' order and the seed, never by recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from heimdall.errors import DataError
from heimdall.settings import Settings
from heimdall.tasks.localization.config import LocalizationConfig
from heimdall.tasks.localization.dataset import Dataset, Features, open_dataset
from heimdall.tasks.localization.geometry import Array, LocalPlane
from heimdall.tasks.localization.scene import network_plane
from heimdall.tasks.sampling import EpochSampler

Batch = tuple[Tensor, Tensor]
Indices = npt.NDArray[np.int64]
LEAST_SESSIONS = 10


@dataclass(frozen=True)
class Split:
    """Indices of the sessions in each part."""

    train: Indices
    validation: Indices
    test: Indices


def split_sessions(count: int, seed: int, validation_share: float, test_share: float) -> Split:
    """A split that follows from the number of sessions and the seed alone; no part is empty."""
    order = np.random.default_rng([seed, 11]).permutation(count)
    validation, test = max(1, round(count * validation_share)), max(1, round(count * test_share))
    return Split(
        train=np.sort(order[validation + test :]),
        validation=np.sort(order[:validation]),
        test=np.sort(order[validation : validation + test]),
    )


class SessionTable(TorchDataset[Batch]):
    """Features and positions of some sessions, read a whole batch at once."""

    draws_nothing = True  # the next batch may be read while training is busy with this one

    def __init__(self, features: Features, positions: Array, indices: Indices) -> None:
        self.features, self.positions, self.indices = features, positions.astype(np.float32), indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> Batch:
        features, positions = self.__getitems__([item])
        return features[0], positions[0]

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """(B, R, 128, 32) dB and (B, 2) km for the sessions at ``items``."""
        rows = self.indices[np.asarray(items)]
        return torch.from_numpy(self.features[rows]), torch.from_numpy(self.positions[rows])


def _as_is(batch: Any) -> Batch:
    whole: Batch = batch  # __getitems__ has put it together
    return whole


class LocalizationData(LightningDataModule):
    """The data set of a prepared config, split in three."""

    def __init__(self, config: LocalizationConfig) -> None:
        super().__init__()
        self.config = config
        self.dataset: Dataset = open_dataset(Path(config.data))
        count = len(self.dataset.sessions)
        if count < LEAST_SESSIONS:
            raise DataError(
                f"{config.data} holds {count} sessions; training needs at least {LEAST_SESSIONS}.",
                mend="Record or simulate more.",
            )
        self.plane: LocalPlane = network_plane(self.dataset.receivers)
        self.positions = self.plane.to_plane(*self.dataset.truths.T)
        self.split = split_sessions(count, config.seed, config.validation_share, config.test_share)
        cache = Path(config.cache) if config.cache else Settings().cache_dir
        self.features = self.dataset.features(cache)

    def part(self, indices: Indices) -> SessionTable:
        """The sessions at ``indices``."""
        return SessionTable(self.features, self.positions, indices)

    def _loader(self, indices: Indices, sampler: EpochSampler | None = None) -> DataLoader[Batch]:
        workers = self.config.num_workers
        return DataLoader(
            self.part(indices),
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            # A last batch of one or two sessions would only add noise
            drop_last=sampler is not None and len(indices) >= self.config.batch_size,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training sessions, in an order of its own each epoch."""
        return self._loader(self.split.train, EpochSampler(len(self.split.train), self.config.seed, 12))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation sessions, in the order of their names."""
        return self._loader(self.split.validation)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test sessions, in the order of their names."""
        return self._loader(self.split.test)
