"""How the network is trained: Gaussian negative log-likelihood, augmentation, calibration, figures in metres."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from heimdall.tasks.distributed import gather_rows, own_rows, world
from heimdall.tasks.localization.config import LocalizationConfig
from heimdall.tasks.localization.datamodule import Batch, LocalizationData
from heimdall.tasks.localization.metrics import CHI_SQUARE_68, CHI_SQUARE_95
from heimdall.tasks.localization.network import Hyperparameters, PositionNetwork

STATISTICS_SESSIONS = 1024  # enough for statistics to a hundredth of a dB
GRADIENT_NORM = 1.0
WARM_UP = 0.1  # share of all steps
SCALE_BOUNDS = (0.5, 3.0)  # a few validation sessions must not stretch the stated uncertainty beyond reason


class LocalizationModule(LightningModule):
    """Trains a :class:`PositionNetwork`. ``hyperparameters`` holds plain types only."""

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.options = hyperparameters
        self.network = PositionNetwork(hyperparameters)
        self.frozen = bool(hyperparameters["freeze_backbone"])
        if self.frozen:
            self.network.backbone.requires_grad_(requires_grad=False)
        self._collected: list[tuple[Tensor, Tensor, Tensor]] = []

    def fit_statistics(self, data: LocalizationData) -> None:
        """Fill the network's buffers from the training sessions of ``data``."""
        table = data.part(data.split.train)
        self.network.fit_statistics(*table.__getitems__(range(min(len(table), STATISTICS_SESSIONS))))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R, 128, 32) dB → position (B, 2) and calibrated standard deviation (B, 2), east and north in km."""
        estimate: tuple[Tensor, Tensor] = self.network(features)
        return estimate

    def _negative_log_likelihood(self, position: Tensor, sigma: Tensor, truth: Tensor) -> Tensor:
        """Mean over the batch, in units of the training positions' spread (so that it does not depend on the km)."""
        std = self.network.get_buffer("target_std")
        residual = (position - truth) / sigma
        likelihood = 0.5 * residual.square() + (sigma / std).log() + 0.5 * math.log(2 * math.pi)
        loss: Tensor = likelihood.sum(1).mean()
        return loss

    def on_train_epoch_start(self) -> None:
        """Draw dropout and augmentation from the seed and the epoch alone, so that a resumed run is the same run."""
        torch.manual_seed(self.options["seed"] * 1_000_003 + self.current_epoch)
        if self.frozen:
            self.network.backbone.eval()

    def training_step(self, batch: Batch) -> Tensor:
        """Loss on augmented features."""
        features, truth = batch
        position, sigma = self.network.estimate(self._augmented(features))
        loss = self._negative_log_likelihood(position, sigma, truth)
        self.log("train/loss", loss.detach(), on_step=True, on_epoch=False, prog_bar=True)
        distance = torch.linalg.vector_norm(position.detach() - truth, dim=1).mean() * 1e3
        self.log("train/epoch_loss", loss, on_step=False, on_epoch=True, batch_size=len(truth))
        self.log("train/mae", distance, on_step=False, on_epoch=True, batch_size=len(truth))
        return loss

    def _augmented(self, features: Tensor) -> Tensor:
        """Another transmit power for all receivers and other fading for each, as new sessions from the same place."""
        power, fading = (float(self.options[f"augment_{kind}_db"]) for kind in ("power", "fading"))
        if not power and not fading:
            return features
        count, receivers = len(features) * world()[1], features.shape[1]
        shift = power * (2 * own_rows(torch.rand(count, 1, device=features.device)) - 1)
        shift = shift + fading * own_rows(torch.randn(count, receivers, device=features.device))
        return features + shift[..., None, None]

    def validation_step(self, batch: Batch) -> None:
        """Collect; the figures need the whole set."""
        self._collected.append((*self.network.estimate(batch[0]), batch[1]))

    def test_step(self, batch: Batch) -> None:
        """Collect; the figures need the whole set."""
        self._collected.append((*self(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        """Fit the scale of the stated uncertainty while training goes on; log figures with it."""
        position, sigma, truth = self._take_collected()
        if self.trainer.state.fn == TrainerFn.FITTING:
            squares = ((position - truth) / sigma).square().sum(1)
            scale = (squares.quantile(0.68) / CHI_SQUARE_68).sqrt().clamp(*SCALE_BOUNDS)
            self.network.get_buffer("sigma_scale").copy_(scale)
        self._log_figures("val", position, sigma * self.network.get_buffer("sigma_scale"), truth)

    def on_test_epoch_end(self) -> None:
        """Log figures of the whole test set."""
        self._log_figures("test", *self._take_collected())

    def _take_collected(self) -> tuple[Tensor, Tensor, Tensor]:
        position, sigma, truth = (gather_rows(torch.cat(parts)) for parts in zip(*self._collected, strict=True))
        self._collected.clear()
        return position, sigma, truth

    def _log_figures(self, part: str, position: Tensor, sigma: Tensor, truth: Tensor) -> None:
        distance = torch.linalg.vector_norm(position - truth, dim=1) * 1e3
        squares = ((position - truth) / sigma).square().sum(1)
        figures: Mapping[str, Tensor] = {
            "loss": self._negative_log_likelihood(position, sigma, truth),
            "mae": distance.mean(),
            "median_m": distance.median(),
            "p90_m": distance.quantile(0.9),
            "coverage68": (squares < CHI_SQUARE_68).float().mean(),
            "coverage95": (squares < CHI_SQUARE_95).float().mean(),
        }
        for name, value in figures.items():
            self.log(f"{part}/{name}", value, prog_bar=part == "val" and name in ("loss", "mae"))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the trainer says; where it says nothing, to a norm of one: sure and far off, the likelihood is steep."""
        self.clip_gradients(optimizer, gradient_clip_val or GRADIENT_NORM, gradient_clip_algorithm or "norm")

    def configure_optimizers(self) -> Any:
        """AdamW; learning rate warms up over a tenth of all steps, then falls as a cosine. No decay on vectors."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.options["weight_decay"]},
                {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self.options["learning_rate"],
        )
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warm_up = max(1, int(WARM_UP * total))

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, total - warm_up))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def hyperparameters(config: LocalizationConfig, data: LocalizationData) -> Hyperparameters:
    """What the network needs to be built again, in plain types."""
    names = (
        "backbone freeze_backbone dropout weight_decay learning_rate seed augment_power_db augment_fading_db "
        "minimum_sigma_km maximum_sigma_km"
    )
    options = config.model_dump(mode="json", include=set(names.split()))
    return options | {
        "receivers": [receiver.model_dump() for receiver in data.dataset.receivers],
        "center": [data.plane.latitude, data.plane.longitude],
        "data_digest": data.dataset.digest,
    }
