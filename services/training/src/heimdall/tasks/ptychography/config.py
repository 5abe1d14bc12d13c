"""Options of the ptychography task. Each is declared once; flags, file keys and the reference table come from here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from heimdall.tasks.base import TaskConfig

PATTERN_SIZES = (64, 128, 256)


class PtychographyConfig(TaskConfig):
    """What is learnt from which scan. Coordinates and sizes are in object pixels."""

    epochs: int = Field(
        20, ge=1, description="Passes over the training data.", json_schema_extra={"aliases": ["max_epochs"]}
    )
    learning_rate: float = Field(4e-3, gt=0, allow_inf_nan=False, description="Peak learning rate of Adam.")
    batch_size: int = Field(8, ge=1, description="Groups of patterns per optimizer step and process.")

    train_data_file: Path | None = Field(
        None, description="Scan to train on, an NPZ file; none simulates one from the seed."
    )
    test_data_file: Path | None = Field(
        None,
        description="Scan to validate and report on; none keeps a region of the training scan for it.",
    )
    n_images: int | None = Field(None, ge=1, description="Groups of patterns in an epoch; none makes one per pattern.")
    gridsize: int = Field(1, ge=1, le=3, description="Patterns the network sees together: gridsize squared.")
    overlap: int = Field(
        4, ge=1, le=9, description="Neighbouring patterns whose objects the loss merges where gridsize is 1; 1: none."
    )
    neighbours: int = Field(6, ge=1, description="Nearest patterns that a group is drawn from.")
    torch_loss_mode: Literal["poisson", "mae"] = Field(
        "poisson", description="Poisson negative log-likelihood of the counts, or mean absolute error of amplitudes."
    )
    photons: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Photons per pattern; none takes them from the data where its squares are whole numbers.",
    )
    learn_probe: bool = Field(True, description="Improve the probe along with the network.")
    probe_learning_rate: float = Field(
        4e-4,
        gt=0,
        allow_inf_nan=False,
        description="Peak learning rate of the probe; a tenth of the network's suits a probe that is nearly right.",
    )
    physics_steps: int = Field(8, ge=0, le=64, description="Gradient steps that turn a pattern into a first object.")
    width: int = Field(32, ge=4, le=256, multiple_of=4, description="Channels of the network's first block.")
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.9, description="Share of the scan kept for validation where there is no test file."
    )
    preview_every: int = Field(5, ge=0, description="Epochs between pictures of the validation region; 0 draws none.")
    simulate_patterns: int = Field(512, ge=16, description="Patterns to simulate where no training scan is given.")
    simulate_size: Literal[64, 128, 256] = Field(64, description="Pixels along a simulated pattern.")


class SimulationOptions(BaseModel):
    """Options of the simulator. All that is random is drawn from ``seed``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(42, ge=0, description="The one seed.")
    patterns: int = Field(512, ge=16, le=100_000, description="Patterns in each of the two scans.")
    size: Literal[64, 128, 256] = Field(64, description="Pixels along a pattern.")
    kind: Literal["lines", "fields", "textures"] = Field("lines", description="What the object is made of.")
    probe: Literal["realistic", "ideal"] = Field(
        "realistic", description="A defocused zone plate's focus, or a smooth disc with a flat phase."
    )
    photons: float = Field(1e5, gt=0, le=1e12, description="Photons in a mean pattern.")
    step: float | None = Field(None, gt=0, description="Scan step in pixels; none: an eighth of the pattern's edge.")
    phase: float = Field(1.0, gt=0, le=3.0, description="Largest phase of the object, in radians.")
