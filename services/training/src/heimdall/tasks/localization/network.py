"""The network: backbone, position head, uncertainty head, and the statistics that it standardises with.

B batch, R receivers, K = 128 bands, F = 32 frames. Statistics of the training set live in buffers, so every checkpoint
has them; they are the same for all sessions, so absolute power, which carries the position, is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from heimdall.tasks.localization.backbones import ImageBackbone
from heimdall.tasks.localization.compact import CompactBackbone
from heimdall.tasks.localization.config import Backbone

Hyperparameters = dict[str, Any]
SIGMA_START = 0.5413  # softplus(0.5413) = 1


class PositionNetwork(nn.Module):
    """(B, R, K, F) dB → position (B, 2) and standard deviation (B, 2), east and north in km."""

    def __init__(self, options: Hyperparameters) -> None:
        super().__init__()
        self.receivers = len(options["receivers"])
        self.bounds_km = (float(options["minimum_sigma_km"]), float(options["maximum_sigma_km"]))
        name = Backbone(options["backbone"])
        self.backbone: CompactBackbone | ImageBackbone = (
            CompactBackbone(self.receivers, options["dropout"])
            if name == Backbone.COMPACT
            else ImageBackbone(name, self.receivers)
        )
        self.dropout = nn.Dropout(options["dropout"])
        self.position_head = nn.Linear(self.backbone.width, 2)
        self.sigma_head = nn.Linear(self.backbone.width, 2)
        for head, bias in ((self.position_head, 0.0), (self.sigma_head, SIGMA_START)):
            # Start at the null model, whatever the backbone gives: far off and sure of it, the loss has no bound
            nn.init.normal_(head.weight, std=0.01)
            nn.init.constant_(head.bias, bias)
        for buffer, start in (("feature_mean", 0.0), ("feature_std", 1.0)):
            self.register_buffer(buffer, torch.full((self.receivers, 1, 1), start))
        self.register_buffer("target_mean", torch.zeros(2))
        self.register_buffer("target_std", torch.ones(2))
        # Stated uncertainty is multiplied by this; fitted on the validation set after every epoch
        self.register_buffer("sigma_scale", torch.ones(()))

    def fit_statistics(self, features: Tensor, positions: Tensor) -> None:
        """Fill the buffers from training sessions: (count, R, K, F) dB and (count, 2) km."""
        self.get_buffer("feature_mean").copy_(features.mean((0, 2, 3))[:, None, None])
        self.get_buffer("feature_std").copy_(features.std((0, 2, 3))[:, None, None].clamp(min=0.1))
        self.get_buffer("target_mean").copy_(positions.mean(0))
        self.get_buffer("target_std").copy_(positions.std(0).clamp(min=0.1))
        if isinstance(self.backbone, CompactBackbone):
            self.backbone.fit_levels(features)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R, K, F) dB → position (B, 2) and calibrated standard deviation (B, 2), east and north in km."""
        position, sigma = self.estimate(features)
        return position, sigma * self.get_buffer("sigma_scale")

    def estimate(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, with the standard deviation as it is learnt, before calibration."""
        if isinstance(self.backbone, ImageBackbone):
            features = (features - self.get_buffer("feature_mean")) / self.get_buffer("feature_std")
        hidden = self.dropout(self.backbone(features))
        mean, std = self.get_buffer("target_mean"), self.get_buffer("target_std")
        position = self.position_head(hidden) * std + mean
        low, high = self.bounds_km
        return position, (low + nn.functional.softplus(self.sigma_head(hidden)) * std).clamp(max=high)
