"""The network in training: patterns in, objects merged, the physics run forwards, compared with what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.config import PtychographyConfig
from heimdall.tasks.ptychography.network import PtychographyNet, dark_margin

if TYPE_CHECKING:
    from heimdall.tasks.ptychography.datamodule import PtychographyData


class Groups(NamedTuple):
    """A batch: B groups of C patterns. See :mod:`~heimdall.tasks.ptychography.physics` for the order of pixels."""

    measured: Tensor  # (B, C, N, N) scaled amplitudes X, corner order
    log_factorials: Tensor  # (B, C) sum over pixels of ln k!
    starts: Tensor  # (B, C, 2) corner of a window on the group's canvas, whole pixels
    remainders: Tensor  # (B, C, 2) what the probe is moved by, pixels


class Merged(NamedTuple):
    """Objects of B groups, with what they were made with. Without windows a group is one pattern and S = N."""

    objects: Tensor  # (B, S, S) complex
    probes: Tensor  # (B, C, m, N, N), each moved to its pattern's place
    lights: Tensor  # (B, C, N, N) their intensities
    rows: Tensor | None  # (B, C, N, S) and
    columns: Tensor | None  # (B, C, N, S), where the windows lie


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes that the weights do not tell."""

    size: int  # N
    modes: int
    gridsize: int
    canvas: int  # S of a group in training
    margin: int  # dark rim of the probe


class PtychographyModule(pl.LightningModule):
    """Network, probe and loss. Hyperparameters are plain numbers, so that a checkpoint loads without pickle."""

    photon_scale: Tensor
    probe_start: Tensor

    def __init__(
        self,
        *,
        size: int,
        modes: int,
        gridsize: int,
        canvas: int,
        margin: int,
        width: int = 32,
        physics_steps: int = 8,
        torch_loss_mode: Literal["poisson", "mae"] = "poisson",
        learn_probe: bool = True,
        learning_rate: float = 1e-3,
        probe_learning_rate: float = 1e-4,
        photon_scale: float = 1.0,
        input_scale: float = 1.0,  # kept for inference, where a scan's mean energy is not at hand  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.geometry = Geometry(size=size, modes=modes, gridsize=gridsize, canvas=canvas, margin=margin)
        self.loss_mode = torch_loss_mode
        self.learning_rate, self.probe_learning_rate = learning_rate, probe_learning_rate
        self.network = PtychographyNet(margin=margin, width=width, steps=physics_steps)
        # real and imaginary part: optimizers, checkpoints and safetensors all know real numbers
        self.probe_parts = nn.Parameter(torch.zeros(modes, size, size, 2), requires_grad=learn_probe)
        self.register_buffer("photon_scale", torch.tensor(photon_scale))
        # the probe as the scan gave it: tells whether another scan was made with the same one
        self.register_buffer("probe_start", torch.zeros(modes, size, size, 2))

    @property
    def probe(self) -> Tensor:
        """Probe modes (m, N, N) with Σ|P|² = (N/2)²: the energy that the object cannot take from it."""
        probe = torch.view_as_complex(self.probe_parts)
        energy = self.probe_parts.square().sum()
        return probe * (self.geometry.size / 2 / torch.sqrt(energy))

    @torch.no_grad()
    def set_probe(self, probe: Tensor) -> None:
        """Take ``probe`` (m, N, N) with Σ|P|² = (N/2)² as the one to use and, where asked for, to improve."""
        self.probe_parts.copy_(torch.view_as_real(probe))
        self.probe_start.copy_(torch.view_as_real(probe))

    @torch.no_grad()
    def probe_for(self, given: Tensor) -> Tensor:
        """The learnt probe where a scan gives what training started from (m, N, N), else what the scan gives."""
        start = torch.view_as_complex(self.probe_start)
        same = given.shape == start.shape and torch.allclose(given, start, atol=1e-4 * float(start.abs().max()))
        return self.probe.clone() if same else given

    def objects(self, measured: Tensor, starts: Tensor, remainders: Tensor, canvas: int, probe: Tensor) -> Merged:
        """Objects of groups, as in :class:`Groups`, each on ``canvas`` pixels; ``probe`` (m, N, N) at rest."""
        probes = physics.shift_probe(probe, remainders)
        lights = physics.intensity(probes.detach())
        alone = measured.shape[1] == 1 and canvas == self.geometry.size
        rows, columns = (None, None) if alone else physics.windows(starts, self.geometry.size, canvas)
        if self.geometry.gridsize > 1:
            objects = self.network(measured, probes, lights, rows, columns)
        else:
            each = (part.flatten(0, 1).unsqueeze(1) for part in (measured, probes, lights))
            patches = self.network(*each).unflatten(0, measured.shape[:2])
            if rows is None or columns is None:
                objects = patches[:, 0]
            else:
                objects = physics.merge(patches, lights, rows, columns)
        return Merged(objects, probes, lights, rows, columns)

    def predicted(self, groups: Groups) -> Tensor:
        """Intensities (B, C, N, N) in corner order that the merged objects give."""
        merged = self.objects(groups.measured, groups.starts, groups.remainders, self.geometry.canvas, self.probe)
        if merged.rows is None or merged.columns is None:
            seen = merged.objects.unsqueeze(1)
        else:
            seen = physics.cut(merged.objects, merged.rows, merged.columns)
        return physics.intensity(physics.far_field(seen, merged.probes))

    def loss(self, predicted: Tensor, groups: Groups) -> Tensor:
        """Poisson negative log-likelihood of a pattern, or mean absolute error of its amplitudes."""
        if self.loss_mode == "mae":
            return physics.mae_loss(predicted, groups.measured)
        counts = (self.photon_scale * groups.measured).square()
        return physics.poisson_loss(predicted, counts, groups.log_factorials, self.photon_scale)

    def training_step(self, batch: Sequence[Tensor], _number: int) -> Tensor:
        """Loss of one batch."""
        groups = Groups(*batch)
        loss = self.loss(self.predicted(groups), groups)
        count = len(groups.measured)
        self.log(f"{self.loss_mode}_train_loss", loss, on_step=True, on_epoch=True, batch_size=count)
        rate = self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]  # type: ignore[union-attr]
        self.log("learning_rate", rate, on_step=True, batch_size=count)
        return loss

    def validation_step(self, batch: Sequence[Tensor], _number: int) -> None:
        """Loss and misfit on held-out patterns."""
        self._measure(Groups(*batch), "val")

    def test_step(self, batch: Sequence[Tensor], *_: int) -> None:
        """Loss and misfit on the test patterns."""
        self._measure(Groups(*batch), "test")

    def _measure(self, groups: Groups, stage: str) -> None:
        predicted, count = self.predicted(groups), len(groups.measured)
        loss = self.loss(predicted, groups)
        self.log(f"{self.loss_mode}_{stage}_loss", loss, prog_bar=True, batch_size=count)
        self.log(f"misfit_{stage}", physics.misfit(predicted, groups.measured).mean(), batch_size=count)

    def configure_optimizers(self) -> Any:
        """Adam; the rate warms up over a twentieth of the run and then falls along a cosine to a fiftieth."""
        groups: list[dict[str, Any]] = [{"params": list(self.network.parameters()), "lr": self.learning_rate}]
        if self.probe_parts.requires_grad:
            groups.append({"params": [self.probe_parts], "lr": self.probe_learning_rate})
        optimizer = torch.optim.Adam(groups)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warm = max(1, total // 20)

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def new_module(config: PtychographyConfig, data: PtychographyData) -> PtychographyModule:
    """A network for the scans in ``data``, its weights drawn from ``config.seed``, with the training scan's probe."""
    torch.manual_seed(config.seed)
    probe = torch.from_numpy(physics.scale_probe(data.train_scan.probe))
    module = PtychographyModule(
        size=data.train_scan.size,
        modes=len(probe),
        gridsize=config.gridsize,
        canvas=data.canvas,
        margin=dark_margin(probe),
        width=config.width,
        physics_steps=config.physics_steps,
        torch_loss_mode=config.torch_loss_mode,
        learn_probe=config.learn_probe,
        learning_rate=config.learning_rate,
        probe_learning_rate=config.probe_learning_rate,
        photon_scale=data.photon_scale,
        input_scale=physics.amplitude_scale(data.train_scan.patterns),
    )
    module.set_probe(probe)
    return module


def load_module(path: Any) -> PtychographyModule:
    """The module of a checkpoint. Plain types only, never a pickle."""
    module = PtychographyModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    return module.eval()
