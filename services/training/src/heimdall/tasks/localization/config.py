"""Options of the localization task. Flag, environment name, file key and reference table come from these fields."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from heimdall.tasks.base import TaskConfig


class Backbone(StrEnum):
    """Networks that turn features into one vector a session."""

    COMPACT = "COMPACT"
    CONVNEXT_TINY = "CONVNEXT_TINY"
    CONVNEXT_SMALL = "CONVNEXT_SMALL"
    CONVNEXT_MEDIUM = "CONVNEXT_MEDIUM"
    CONVNEXT_LARGE = "CONVNEXT_LARGE"
    RESNET_50 = "RESNET_50"
    RESNET_101 = "RESNET_101"
    VIT_BASE = "VIT_BASE"
    VIT_LARGE = "VIT_LARGE"
    EFFICIENTNET_B3 = "EFFICIENTNET_B3"
    EFFICIENTNET_B4 = "EFFICIENTNET_B4"


class LocalizationConfig(TaskConfig):
    """What is trained, on which data, and how."""

    data: str = Field(
        "",
        description="Recordings to learn from: a folder or s3://bucket/prefix; "
        "empty simulates a sample set into the cache, once.",
    )
    cache: str = Field("", description="Folder for fetched data and features; empty means cache in HEIMDALL_HOME.")
    backbone: Backbone = Field(
        Backbone.CONVNEXT_LARGE, description="Network: COMPACT suits a CPU, the others are image networks for a GPU."
    )
    pretrained: bool = Field(False, description="Start from published weights (image networks only).")
    pretrained_weights: str = Field(
        "", description="Hub name or folder of the weights to start from; empty means the backbone's published ones."
    )
    freeze_backbone: bool = Field(False, description="Train the heads only.")
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False, description="AdamW weight decay.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of features dropped in training.")
    augment_power_db: float = Field(
        5.0, ge=0, le=60, description="Transmit-power augmentation: shifts all receivers by up to ± this, in dB."
    )
    augment_fading_db: float = Field(
        1.5, ge=0, le=60, description="Fading augmentation: standard deviation per receiver, in dB."
    )
    minimum_sigma_km: float = Field(0.1, gt=0, description="Smallest standard deviation the network may state, in km.")
    maximum_sigma_km: float = Field(200.0, gt=0, description="Largest standard deviation it may state, in km.")
    validation_share: float = Field(0.1, gt=0, lt=1, description="Share of sessions kept for validation.")
    test_share: float = Field(0.2, gt=0, lt=1, description="Share of sessions kept for the final test.")
    sample_sessions: int = Field(1500, ge=20, description="Sessions in the simulated sample set (0.5 MB each).")
    sample_seed: int = Field(7, ge=0, description="Seed of the simulated scene: its shadow maps and sessions.")
    sample_frequency_mhz: float = Field(
        145.0, gt=30, lt=6000, description="Carrier frequency of the simulated sample set, in MHz."
    )

    @field_validator("backbone", mode="before")
    @classmethod
    def _known_backbone(cls, value: object) -> object:
        name = str(value).upper().replace("-", "_")
        if name not in Backbone.__members__:
            raise ValueError(f"there is no backbone {value!r}; choose one of: {', '.join(Backbone.__members__)}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> LocalizationConfig:
        if self.backbone == Backbone.COMPACT and self.pretrained:
            raise ValueError("COMPACT has no pretrained weights; use --no-pretrained or another backbone")
        if self.validation_share + self.test_share >= 0.9:
            raise ValueError("validation_share and test_share together must be below 0.9")
        if self.minimum_sigma_km >= self.maximum_sigma_km:
            raise ValueError("minimum_sigma_km must be below maximum_sigma_km")
        return self


class SimulationOptions(BaseModel):
    """Options of ``heimdall simulate localization``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sessions: int = Field(1500, ge=1, description="Sessions to simulate (0.5 MB each with seven receivers).")
    seed: int = Field(7, ge=0, description="The one seed that the scene and all sessions are drawn from.")
    first_session: int = Field(
        0,
        ge=0,
        description="Number of the first session. The same seed with a number that no training set reached gives other "
        "sessions of the same scene: a hold-out set.",
    )
    frequency_mhz: float = Field(145.0, gt=30, lt=6000, description="Carrier frequency in MHz.")
    path_loss_exponent: float = Field(3.0, ge=1, le=6, description="Path-loss exponent n.")
    shadowing_db: float = Field(6.0, ge=0, le=20, description="Standard deviation of the terrain's shadowing, in dB.")
    correlation_km: float = Field(20.0, gt=0, le=200, description="Distance at which shadowing decorrelates, in km.")
    fading_db: float = Field(2.0, gt=0, le=20, description="Standard deviation of the residual fading, in dB.")
