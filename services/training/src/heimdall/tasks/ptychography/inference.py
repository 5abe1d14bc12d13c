"""The network as it is served: real arithmetic only, so that ONNX can hold it. The FFT becomes two matrix products.

The same steps as :meth:`~heimdall.tasks.ptychography.network.PtychographyNet.forward`; a test holds them together.
Complex values are pairs (real, imaginary).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from heimdall.tasks.ptychography.module import PtychographyModule
from heimdall.tasks.ptychography.network import MOMENTUM, PtychographyNet
from heimdall.tasks.ptychography.physics import EPSILON, cut, place, windows

Pair = tuple[Tensor, Tensor]


def multiply(first: Pair, second: Pair) -> Pair:
    """Complex product."""
    return first[0] * second[0] - first[1] * second[1], first[0] * second[1] + first[1] * second[0]


class Fourier(nn.Module):
    """Unitary FFT of (..., N, N) in corner order, as matrix products."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        numbers = torch.arange(size, dtype=torch.float64)
        angle = 2 * math.pi * torch.remainder(torch.outer(numbers, numbers), size) / size
        self.register_buffer("cosine", (torch.cos(angle) / math.sqrt(size)).float())
        self.register_buffer("sine", (torch.sin(angle) / math.sqrt(size)).float())

    def forward(self, values: Pair, sign: float = -1.0) -> Pair:
        """The transform; ``sign=1`` gives the inverse."""
        matrix = (self.cosine, sign * self.sine)
        half = matrix[0] @ values[0] - matrix[1] @ values[1], matrix[0] @ values[1] + matrix[1] @ values[0]
        return half[0] @ matrix[0] - half[1] @ matrix[1], half[0] @ matrix[1] + half[1] @ matrix[0]


class Inverter(nn.Module):
    """Diffraction patterns to amplitude and phase of the object under each window.

    ``forward(patterns, positions)``: patterns (B, C, N, N) amplitudes of any scale, zero frequency at [N/2, N/2];
    positions (B, C, 2) float32, (x, y) of the windows' centres in object pixels. Returns amplitude, and phase in
    radians, both (B, C, N, N), on whole object pixels: pixel [N/2, N/2] is the object pixel nearest to the centre.
    """

    input_scale: Tensor
    probe_real: Tensor
    probe_imaginary: Tensor
    frequencies: Tensor

    def __init__(self, module: PtychographyModule) -> None:
        super().__init__()
        geometry = module.geometry
        self.network: PtychographyNet = module.network
        self.size, self.members, self.canvas = geometry.size, geometry.gridsize**2, geometry.canvas
        if self.members == 1:
            self.canvas = self.size
        self.fourier = Fourier(self.size)
        probe = torch.fft.fft2(module.probe.detach(), norm="ortho")
        self.register_buffer("probe_real", probe.real.contiguous())
        self.register_buffer("probe_imaginary", probe.imag.contiguous())
        self.register_buffer("frequencies", torch.fft.fftfreq(self.size))
        self.register_buffer("input_scale", torch.tensor(float(module.hparams["input_scale"])))

    def forward(self, patterns: Tensor, positions: Tensor) -> Pair:
        """Amplitude and phase; see the class."""
        half = self.size // 2
        measured = torch.roll(patterns * self.input_scale, (half, half), (-2, -1))
        level = torch.sqrt(measured.square().sum((-2, -1)).mean(1)) / half
        measured = measured / level[:, None, None, None]
        places = positions.flip(-1)
        whole = torch.floor(places + 0.5)
        probes = self._probes(places - whole)
        rows, columns = self._windows(whole)
        light = (probes[0].square() + probes[1].square()).sum(2)
        light = light[:, 0] if rows is None or columns is None else place(light, rows, columns)
        first = self._estimate(measured, probes, light, rows, columns)
        objects = self.network.correct(*first, light) * level[:, None, None, None]
        real, imaginary = objects.unbind(1)
        if rows is None or columns is None:
            seen = real.unsqueeze(1), imaginary.unsqueeze(1)
        else:
            seen = cut(real, rows, columns), cut(imaginary, rows, columns)
        return torch.sqrt(seen[0].square() + seen[1].square()), torch.atan2(seen[1], seen[0])

    def _probes(self, remainders: Tensor) -> Pair:
        turns = (
            remainders[..., 0, None, None] * self.frequencies[:, None]
            + remainders[..., 1, None, None] * self.frequencies
        )
        angle = (-2 * math.pi * turns).unsqueeze(-3)
        ramp = torch.cos(angle), torch.sin(angle)
        moved: Pair = self.fourier(multiply((self.probe_real, self.probe_imaginary), ramp), sign=1.0)
        return moved

    def _windows(self, whole: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if self.members == 1:
            return None, None
        offsets = whole - torch.round(whole.mean(1, keepdim=True))
        return windows(offsets + (self.canvas - self.size) // 2, self.size, self.canvas)

    def _estimate(
        self, measured: Tensor, probes: Pair, light: Tensor, rows: Tensor | None, columns: Tensor | None
    ) -> Pair:
        real, imaginary = torch.ones_like(light), torch.zeros_like(light)
        speed = torch.zeros_like(light), torch.zeros_like(light)
        length = 1 / light.amax((-2, -1), keepdim=True)
        for _ in range(self.network.steps):
            if rows is None or columns is None:
                seen = real[:, None, None], imaginary[:, None, None]
            else:
                seen = cut(real, rows, columns).unsqueeze(2), cut(imaginary, rows, columns).unsqueeze(2)
            wave = self.fourier(multiply(seen, probes))
            amplitude = torch.sqrt((wave[0].square() + wave[1].square()).sum(2))
            ratio = (measured / (amplitude + EPSILON) - 1).unsqueeze(2)
            back = self.fourier((wave[0] * ratio, wave[1] * ratio), sign=1.0)
            step = [part.sum(2) for part in multiply((probes[0], -probes[1]), back)]
            if rows is None or columns is None:
                total = [part[:, 0] for part in step]
            else:
                total = [place(part, rows, columns) for part in step]
            speed = MOMENTUM * speed[0] + length * total[0], MOMENTUM * speed[1] + length * total[1]
            real, imaginary = real + speed[0], imaginary + speed[1]
        return real, imaginary
