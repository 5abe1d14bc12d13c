"""What happens beside training: a picture of the validation region every few epochs."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import lightning.pytorch as pl
import numpy as np

from heimdall.tasks.base import Publish
from heimdall.tasks.ptychography.datamodule import PtychographyData
from heimdall.tasks.ptychography.module import PtychographyModule
from heimdall.tasks.ptychography.pictures import draw_preview
from heimdall.tasks.ptychography.reconstruct import reconstruct
from heimdall.tasks.ptychography.scan import Scan

LARGEST_REGION = 256  # patterns: a preview must not take as long as an epoch


class Preview(pl.Callback):
    """Draws amplitude and phase of one fixed region every few epochs and publishes the picture."""

    def __init__(self, every: int, folder: Path, publish: Publish) -> None:
        self.every, self.folder, self.publish = every, folder, publish

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw after the first epoch, every few epochs, and after the last."""
        epoch = trainer.current_epoch + 1
        due = epoch == 1 or epoch % self.every == 0 or epoch == trainer.max_epochs
        if not due or trainer.sanity_checking or not trainer.is_global_zero:
            return
        data = cast("PtychographyData", trainer.datamodule)  # type: ignore[attr-defined]
        region = middle_region(data.test_scan)
        found = reconstruct(cast("PtychographyModule", pl_module), region, batch_size=data.config.batch_size)
        title = f"Epoch {epoch}: misfit {found.misfit.mean():.4f}"
        path = draw_preview(found, region, self.folder / f"epoch-{epoch:04d}.png", title)
        self.publish(path, "previews")


def middle_region(scan: Scan) -> Scan:
    """The patterns nearest to the middle of ``scan``, at most :data:`LARGEST_REGION`."""
    if len(scan) <= LARGEST_REGION:
        return scan
    distance = np.hypot(scan.x - np.median(scan.x), scan.y - np.median(scan.y))
    return scan.select(np.sort(np.argsort(distance, kind="stable")[:LARGEST_REGION]))
