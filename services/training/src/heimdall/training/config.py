"""How a run is driven, whatever is learnt: where output goes, who logs, on what it runs, when it is saved."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LoggerName = Literal["mlflow", "csv", "tensorboard", "none"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"]

DISABLE_MLFLOW_WARNING = (
    "DeprecationWarning: --disable_mlflow is deprecated. "
    "Use --logger none to disable logging and --quiet to suppress progress bars."
)


class RunConfig(BaseModel):
    """Options that every training run has, beside those of its task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    logger: LoggerName = Field("mlflow", description="Who keeps the metrics.")
    quiet: bool = Field(False, description="No progress bar and nearly no output.")
    enable_progress_bar: bool = Field(True, description="Show progress while training.")
    output_dir: Path | None = Field(
        None, description="Folder for checkpoints, report and bundle; by default outputs/TASK/DATE-TIME[-RUN_NAME]."
    )
    run_name: str = Field("", max_length=200, description="Name of the run, for people.")
    resume: str = Field(
        "",
        description="Continue a run: its output folder, its run id, or auto "
        "(the newest run in --output-dir, or of this task, if it is unfinished; else a new run).",
    )
    register_model: bool = Field(
        True,
        description="Register the trained model.",
        json_schema_extra={"flag": "register"},
    )
    strict_tracking: bool = Field(False, description="End with exit code 75 where not everything could be delivered.")
    publish_checkpoints: Literal["none", "best", "all"] = Field(
        "best",
        description="Checkpoints kept as artifacts: none; the best at the end; all as they are written, so that the "
        "run can be resumed on another machine.",
    )

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = Field(
        "auto", description="What to train on; auto takes a GPU where there is one."
    )
    devices: str = Field(
        "1",
        pattern=r"^(auto|-?\d+(,\d+)*)$",
        description="Devices a node: a count, a list of indices, or auto for all.",
    )
    num_nodes: int = Field(1, ge=1, description="Machines that train together.")
    strategy: str = Field("auto", min_length=1, description="Lightning strategy: auto, ddp, fsdp, ….")
    precision: Precision = Field("32-true", description="Arithmetic precision.")
    compile: bool = Field(False, description="Compile the network with torch.compile.")
    channels_last: bool = Field(
        False, description="Keep images as height, width, channels in memory: faster for convolutions on a GPU."
    )
    fused_optimizer: bool = Field(
        True, description="Update all weights in one kernel, where optimizer and device have it."
    )
    deterministic: bool = Field(
        False, description="Only deterministic algorithms, on GPUs too. On the CPU a seed suffices."
    )

    accumulate_grad_batches: int = Field(1, ge=1, description="Batches a step of the optimizer.")
    gradient_clip: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Largest norm of the gradient; 0: no limit."
    )
    early_stop_patience: int = Field(
        20, ge=0, description="Epochs without a better monitored metric after which training ends; 0: never."
    )
    log_every_n_steps: int = Field(10, ge=1, description="Steps between two logged points of a step metric.")

    enable_checkpointing: bool = Field(
        True,
        description="Save checkpoints; without them the last weights count as best.",
        json_schema_extra={"off_flag": "disable_checkpointing"},
    )
    save_top_k: int = Field(
        3,
        ge=1,
        description="How many of the best checkpoints to keep.",
        json_schema_extra={"aliases": ["checkpoint_save_top_k"]},
    )
    checkpoint_monitor: str = Field(
        "", description="Metric that decides which checkpoint is best; by default the task's."
    )
    checkpoint_mode: Literal["", "min", "max"] = Field(
        "", description="Whether less or more of it is better; by default the task's."
    )
    checkpoint_every_n_epochs: int = Field(1, ge=1, description="Epochs between two saves of last.ckpt.")
    checkpoint_every_n_steps: int = Field(
        0, ge=0, description="Further saves of last.ckpt after so many steps; 0: none."
    )
    checkpoint_every_minutes: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="Further saves of last.ckpt in long epochs, in minutes; 0: none."
    )

    disable_mlflow: bool = Field(
        False,
        description="Deprecated: --logger none --quiet.",
        json_schema_extra={"hidden": True, "off_flag": None},
    )

    @property
    def show_progress(self) -> bool:
        """Whether a person watches."""
        return self.enable_progress_bar and not self.quiet

    def without_deprecated(self) -> RunConfig:
        """The same configuration in today's words."""
        if not self.disable_mlflow:
            return self
        return self.model_copy(update={"logger": "none", "quiet": True, "disable_mlflow": False})

    def output_folder(self, task: str) -> Path:
        """Where the run writes: :attr:`output_dir`, or a new folder named after the time."""
        if self.output_dir is not None:
            return self.output_dir.expanduser().absolute()
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        tail = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.run_name)
        return (outputs_root(task) / (f"{stamp}-{tail}" if tail else stamp)).absolute()


def outputs_root(task: str) -> Path:
    """Folder that holds the output folders of a task's runs, where none is named."""
    return Path("outputs") / task
