"""The compact network: learns which bands carry the signal, and where a set of received powers comes from.

Nearly all that is known about the position is in the power of each receiver within the signal's bands. So the stem adds
power up, in linear units as power adds, under a few learnable windows over the bands; a plain perceptron does the rest.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from heimdall.tasks.localization.features import BANDS

WINDOW_WIDTHS = (4.0, 8.0, 40.0)  # bands of 1.5 kHz: the voice channel, its skirts, the noise about it
CONTRAST = 3.0  # differences between receivers are what a position follows from: give them more weight at the start


class PowerWindows(nn.Module):
    """(B, R, K bands, F frames) dB → (B, R, windows) dB: mean power under learnable windows."""

    def __init__(self) -> None:
        super().__init__()
        band = torch.arange(BANDS) - (BANDS - 1) / 2
        self.logits = nn.Parameter(torch.stack([-0.5 * (band / width) ** 2 for width in WINDOW_WIDTHS]))

    def forward(self, features: Tensor) -> Tensor:
        """Power under each window in dB."""
        power = torch.exp(features * (math.log(10) / 10)).mean(-1)
        windowed = torch.matmul(power, self.logits.softmax(-1).T)
        return windowed.log() * (10 / math.log(10))


class CompactBackbone(nn.Module):
    """Power windows and a perceptron: (B, R, 128, 32) dB → (B, width).

    ``level_mean`` and ``level_std`` (R,) in dB are the training set's statistics of the power under the first window.
    """

    def __init__(self, receivers: int, dropout: float, width: int = 512, layers: int = 4) -> None:
        super().__init__()
        self.width = width
        self.windows = PowerWindows()
        self.register_buffer("level_mean", torch.zeros(receivers))
        self.register_buffer("level_std", torch.ones(receivers))
        sizes = [2 * receivers * len(WINDOW_WIDTHS), *[width] * layers]
        self.layers = nn.Sequential()
        for index, (before, after) in enumerate(itertools.pairwise(sizes)):
            if index:
                self.layers.append(nn.Dropout(dropout))
            self.layers.extend([nn.Linear(before, after), nn.GELU()])

    def fit_levels(self, features: Tensor) -> None:
        """Take the statistics from (sessions, R, 128, 32) dB of the training set."""
        with torch.no_grad():
            level = self.windows(features)[..., 0]
            self.get_buffer("level_mean").copy_(level.mean(0))
            self.get_buffer("level_std").copy_(level.std(0).clamp(min=0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Features in dB, absolute level and all, to one vector a session."""
        mean, std = self.get_buffer("level_mean"), self.get_buffer("level_std")
        level = (self.windows(features) - mean[:, None]) / std[:, None]
        contrast = CONTRAST * (level - level.mean(1, keepdim=True))
        hidden: Tensor = self.layers(torch.cat([level, contrast], dim=1).flatten(1))
        return hidden
