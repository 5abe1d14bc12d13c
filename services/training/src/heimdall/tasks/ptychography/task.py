"""The ptychography task: the Task contract, put together from this folder. Heavy imports wait until they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from heimdall.errors import ConfigError, DataError
from heimdall.tasks.base import (
    Arrays,
    Evaluation,
    FitResult,
    Monitor,
    Predict,
    Publish,
    Report,
    Task,
    TaskConfig,
    checked_options,
)
from heimdall.tasks.ptychography.config import PtychographyConfig, SimulationOptions

if TYPE_CHECKING:
    import pandas as pd
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from torch import nn

    from heimdall.tasks.ptychography.module import PtychographyModule
    from heimdall.tasks.ptychography.scan import Scan


class PtychographyTask(Task[PtychographyConfig]):
    """Object patches from diffraction patterns by a network that knows the physics and is never shown a truth."""

    name: ClassVar[str] = "ptychography"
    config_model: ClassVar[type[TaskConfig]] = PtychographyConfig
    simulation_model: ClassVar[type[SimulationOptions]] = SimulationOptions
    # the misfit has one meaning, whichever loss is chosen
    monitor: ClassVar[Monitor] = Monitor(metric="misfit_val")
    bundle_folder: ClassVar[str] = "."  # wts.h5.zip lies where its users look for it

    def prepare(self, config: PtychographyConfig, cache: Path) -> PtychographyConfig:
        """Check the scans, or simulate one where none is given; paths become absolute."""
        from heimdall.tasks.ptychography.scan import read_scan

        found: dict[str, Path] = {}
        for name in ("train_data_file", "test_data_file"):
            given: Path | None = getattr(config, name)
            if given is not None:
                found[name] = given.expanduser().absolute()
                read_scan(found[name])
        if "train_data_file" not in found:
            if "test_data_file" in found:
                raise ConfigError("There is a test scan but none to train on.", mend="Give --train_data_file.")
            options = {"seed": config.seed, "patterns": config.simulate_patterns, "size": config.simulate_size}
            folder = cache.absolute() / "ptychography" / "-".join(f"{key}{value}" for key, value in options.items())
            path = folder / TRAIN_FILE
            found["train_data_file"] = path if path.exists() else self.simulate(folder, options) / TRAIN_FILE
            found["test_data_file"] = folder / TEST_FILE
        return config.model_copy(update=found)

    def simulate(self, folder: Path, options: Mapping[str, Any]) -> Path:
        """Write ``train.npz`` and ``test.npz``, of two objects; ``options`` as in :class:`SimulationOptions`."""
        from heimdall.tasks.ptychography.scan import write_scan
        from heimdall.tasks.ptychography.simulate import simulate

        chosen = checked_options(SimulationOptions, options)
        write_scan(folder / TEST_FILE, simulate(chosen, stream=1))
        write_scan(folder / TRAIN_FILE, simulate(chosen, stream=0))
        return folder

    def datamodule(self, config: PtychographyConfig) -> LightningDataModule:
        """Groups of patterns of the prepared config's scans."""
        from heimdall.tasks.ptychography.datamodule import PtychographyData

        return PtychographyData(config)

    def module(self, config: PtychographyConfig, data: LightningDataModule) -> LightningModule:
        """A new network, with the training scan's probe."""
        from heimdall.tasks.ptychography.datamodule import PtychographyData
        from heimdall.tasks.ptychography.module import new_module

        assert isinstance(data, PtychographyData)  # noqa: S101 - made by this task
        return new_module(config, data)

    def load(self, checkpoint: Path) -> LightningModule:
        """The module of a checkpoint or of a ``wts.h5.zip``."""
        from heimdall.tasks.ptychography.bundle import read_bundle
        from heimdall.tasks.ptychography.module import load_module

        return read_bundle(checkpoint) if checkpoint.suffix == ".zip" else load_module(checkpoint)

    def report(self, result: FitResult, folder: Path) -> Report:
        """Figures and pictures of the test scan."""
        from heimdall.tasks.ptychography.report import make_report

        return make_report(result, folder)

    def inference_module(self, module: LightningModule) -> nn.Module:
        """Patterns (B, C, N, N) and positions (B, C, 2) → amplitude and phase (B, C, N, N); C is gridsize squared."""
        from heimdall.tasks.ptychography.inference import Inverter

        return Inverter(_ours(module)).eval()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Amplitudes (B, C, N, N), and (x, y) (B, C, 2) in object pixels; float32."""
        return ("patterns", "positions")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Amplitude, and phase in radians, both (B, C, N, N) float32."""
        return ("amplitude", "phase")

    def example_input(self, data: LightningDataModule, count: int = 4) -> Arrays:
        """The first ``count`` groups of the test scan."""
        from heimdall.tasks.ptychography.datamodule import PtychographyData
        from heimdall.tasks.ptychography.grouping import group_patterns
        from heimdall.tasks.ptychography.reconstruct import served_inputs

        assert isinstance(data, PtychographyData)  # noqa: S101 - made by this task
        groups = group_patterns(data.test_scan, data.config.gridsize**2)[:count]
        return served_inputs(data.test_scan, groups)

    def evaluate(self, predict: Predict, source: str, cache: Path, batch_size: int = 64) -> Evaluation:
        """Misfit with the scan's own probe and, where ``source`` holds its object, the figures beside it."""
        from heimdall.tasks.ptychography.reconstruct import reconstruct_served
        from heimdall.tasks.ptychography.report import figures

        scan = _scan(source, cache)
        found = reconstruct_served(predict, scan, batch_size=batch_size)
        return Evaluation(metrics=figures(found, scan), digest=scan.digest, count=len(scan))

    def predict(self, predict: Predict, source: str, cache: Path, batch_size: int = 64) -> pd.DataFrame:
        """One row a pattern: number, x, y, mean amplitude and phase under the probe, misfit of the stitched object."""
        import pandas as pd

        from heimdall.tasks.ptychography.reconstruct import reconstruct_served, under_probe

        scan = _scan(source, cache)
        found = reconstruct_served(predict, scan, batch_size=batch_size)
        amplitude, phase = under_probe(found, scan)
        columns = {"x": scan.x, "y": scan.y, "amplitude": amplitude, "phase": phase, "misfit": found.misfit}
        return pd.DataFrame({"pattern": range(len(scan)), **columns})

    def callbacks(self, config: PtychographyConfig, folder: Path, publish: Publish) -> list[Callback]:
        """A picture of the validation region every few epochs."""
        from heimdall.tasks.ptychography.callbacks import Preview

        return [Preview(config.preview_every, folder / "previews", publish)] if config.preview_every else []

    def bundle(self, module: LightningModule, config: PtychographyConfig, folder: Path) -> Path:
        """Write ``wts.h5.zip`` into ``folder``."""
        from heimdall.tasks.ptychography.bundle import NAME, write_bundle

        # where the data lay is nobody's business
        kept = config.model_dump(mode="json", exclude={"train_data_file", "test_data_file"})
        return write_bundle(_ours(module), kept, folder / NAME)


TRAIN_FILE, TEST_FILE = "train.npz", "test.npz"


def _ours(module: LightningModule) -> PtychographyModule:
    from heimdall.tasks.ptychography.module import PtychographyModule

    assert isinstance(module, PtychographyModule)  # noqa: S101 - made by this task
    return module


def _scan(source: str, cache: Path) -> Scan:
    from heimdall.tasks.ptychography.scan import read_scan

    del cache
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        if (path / TEST_FILE).is_file():
            return read_scan(path / TEST_FILE)
        scans = sorted(path.glob("*.npz"))
        if len(scans) != 1:
            raise DataError(f"{path} holds {len(scans)} NPZ files.", mend="Name the one to use.")
        return read_scan(scans[0])
    return read_scan(path)
