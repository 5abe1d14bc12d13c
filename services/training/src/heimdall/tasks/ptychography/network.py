"""From patterns to an object in one pass: a few gradient steps of the known physics, then a small U-Net that corrects.

The steps turn diffraction amplitudes, where a convolution sees nothing local, into an object in real space, where it
does. The U-Net is left with what single patterns cannot tell: noise, low frequencies, the dim rim of the probe. It
works at half resolution (space to depth and back), and only where the probe has light.

Shapes as in :mod:`~heimdall.tasks.ptychography.physics`: B groups, C patterns, m modes, N pixels, S canvas pixels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from heimdall.tasks.ptychography.physics import EPSILON, cut, far_field, intensity, place

MOMENTUM = 0.5
LEVELS = 3
DIM = 0.02  # light, relative to the brightest, at which half of a correction is believed
FEATURES = 3  # real and imaginary part of the first object, light that fell on it


def estimate(
    measured: Tensor, probes: Tensor, light: Tensor, rows: Tensor | None, columns: Tensor | None, steps: int
) -> Tensor:
    """First objects (B, S, S) complex: ``steps`` of gradient descent with momentum on Σ(|F| - X)² from a flat object.

    ``measured`` X (B, C, N, N) in corner order, ``probes`` (B, C, m, N, N), their ``light`` (B, S, S). Without ``rows``
    and ``columns`` each group is a single pattern and S = N.
    """
    objects = torch.ones_like(light) + 0j
    velocity = torch.zeros_like(objects)
    # the length of a step is part of what a wave is brought back with
    back = probes.conj() / light.amax((-2, -1))[:, None, None, None, None]
    for _ in range(steps):
        seen = objects.unsqueeze(1) if rows is None or columns is None else cut(objects, rows, columns)
        wave = far_field(seen, probes)
        wave *= (measured / (torch.sqrt(intensity(wave)) + EPSILON)).sub_(1).unsqueeze(-3)
        change = torch.fft.ifft2(wave, norm="ortho").mul_(back).sum(-3)
        velocity *= MOMENTUM
        velocity += change[:, 0] if rows is None or columns is None else place(change, rows, columns)
        objects += velocity
    return objects


class Block(nn.Sequential):
    """Two 3 x 3 convolutions with ReLU."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, padding=1),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Correction (B, 2, S, S) of an object from its features (B, FEATURES, S, S); S a multiple of 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(LEVELS)]
        inputs = [4 * FEATURES, *channels[:-1]]
        self.down = nn.ModuleList(Block(*pair) for pair in zip(inputs, channels, strict=True))
        self.up = nn.ModuleList(Block(3 * outside, outside) for outside in reversed(channels[:-1]))
        self.last = nn.Conv2d(width, 8, 3, padding=1)
        # training starts from what the physics alone gives
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast("Tensor", self.last.bias))
        # pixels with their channels side by side: the convolutions take a third less time on a CPU
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        values = nn.functional.pixel_unshuffle(features, 2)
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            values = block(values if level == 0 else nn.functional.max_pool2d(values, 2))
            kept.append(values)
        for level, block in enumerate(self.up):
            larger = nn.functional.interpolate(values, scale_factor=2.0, mode="nearest")
            values = block(torch.cat([larger, kept[-2 - level]], dim=1))
        return nn.functional.pixel_shuffle(self.last(values), 2)


class PtychographyNet(nn.Module):
    """Objects from patterns. ``margin``: pixels along each edge of a window that the probe leaves dark."""

    def __init__(self, *, margin: int, width: int, steps: int) -> None:
        super().__init__()
        self.margin, self.steps = margin, steps
        self.correction = UNet(width)

    def forward(
        self,
        measured: Tensor,
        probes: Tensor,
        lights: Tensor,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Objects (B, S, S) complex; ``lights`` (B, C, N, N) is the intensity of the probes, the other arguments are as
        in :func:`estimate`. S - 2 margin must be a multiple of 8.

        A group is brought to the energy of a flat object, and its object back: a pattern's scale leaves phases alone.
        """
        with torch.no_grad():
            level = 2 * torch.sqrt(measured.square().sum((-2, -1)).mean(1))[:, None, None] / measured.shape[-1]
            measured = measured / level[..., None]
            light = lights[:, 0] if rows is None or columns is None else place(lights, rows, columns)
            first = estimate(measured, probes, light, rows, columns, self.steps)
        real, imaginary = self.correct(first.real, first.imag, light).unbind(1)
        return torch.complex(real, imaginary) * level

    def correct(self, real: Tensor, imaginary: Tensor, light: Tensor) -> Tensor:
        """Corrected objects (B, 2, S, S), real and imaginary part, from first ones and their light (B, S, S)."""
        inside = slice(self.margin, real.shape[-1] - self.margin)
        lit = light[:, inside, inside]
        lit = lit / lit.amax((-2, -1), keepdim=True)
        features = torch.stack([real[:, inside, inside] - 1, imaginary[:, inside, inside], lit], dim=1)
        # no light, no correction: what was never lit stays flat
        change = self.correction(features) * (lit / (lit + DIM)).unsqueeze(1)
        return torch.stack([real, imaginary], dim=1) + nn.functional.pad(change, [self.margin] * 4)


def dark_margin(probe: Tensor, share: float = 0.98) -> int:
    """Pixels along each edge of a window outside which ``share`` of the probe (m, N, N) lies; a multiple of 4."""
    light = probe.abs().square().sum(0)
    size, total = light.shape[-1], float(light.sum())
    for margin in range(size // 2 - 8, 0, -4):
        if float(light[margin:-margin, margin:-margin].sum()) >= share * total:
            return margin
    return 0
