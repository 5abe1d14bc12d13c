"""One process of a run of several: trains, and the first says how many steps it made a second."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from heimdall.settings import Settings
from heimdall.tasks.base import find_task
from heimdall.training.config import RunConfig
from heimdall.training.pipeline import TrainingPipeline


class Watch(Callback):
    """The median step; what validation takes falls out of it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if trainer.is_global_zero:
            print("RATE", 1 / statistics.median(b - a for a, b in itertools.pairwise(self.times)), flush=True)


def main(name: str, options: dict[str, Any], processes: int, folder: str, cache: str) -> None:
    """Train ``name`` with ``options`` as one of ``processes``."""
    kind: Any = type(find_task(name))

    class Timed(kind):  # type: ignore[misc]
        def callbacks(self, *given: Any) -> list[Callback]:
            return [*super().callbacks(*given), Watch()]

    run = RunConfig(
        output_dir=Path(folder),
        quiet=True,
        logger="none",
        register_model=False,
        early_stop_patience=0,
        accelerator="cpu",
        devices=str(processes),
        strategy="ddp" if processes > 1 else "auto",
    )
    task = Timed()
    TrainingPipeline(task, task.config_model.model_validate(options), run, Settings(heimdall_home=Path(cache))).run()


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
