"""Pictures of objects, probes, misfits and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from heimdall.tasks.ptychography.evaluate import flatten_phase
from heimdall.tasks.ptychography.reconstruct import Reconstruction
from heimdall.tasks.ptychography.scan import Scan

AMPLITUDE_COLOURS, PHASE_COLOURS, MISFIT_COLOURS = "gray", "cividis", "viridis"
DOTS = 110

History = Mapping[str, Sequence[tuple[int, int, float]]]


def scanned_object(
    found: Reconstruction, scan: Scan
) -> tuple[npt.NDArray[np.complex64], tuple[float, float, float, float]]:
    """The object between the outermost positions, phase plane removed, and its extent (left, right, bottom, top)."""
    box = found.image.scanned(scan.x, scan.y)
    rows, columns = found.image.rows[box[0]], found.image.columns[box[1]]
    extent = (columns[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5, rows[0] - 0.5)
    return flatten_phase(found.image.values[box]), tuple(float(edge) for edge in extent)  # type: ignore[return-value]


def draw_amplitude(found: Reconstruction, scan: Scan, path: Path, title: str = "Amplitude") -> Path:
    """Amplitude of the object over object pixels."""
    values, extent = scanned_object(found, scan)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    show(figure, figure.add_subplot(), np.abs(values), AMPLITUDE_COLOURS, title, extent=extent)
    return save(figure, path)


def draw_phase(found: Reconstruction, scan: Scan, path: Path, title: str = "Phase (rad)") -> Path:
    """Phase of the object over object pixels, in radians, without its plane."""
    values, extent = scanned_object(found, scan)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    show(figure, figure.add_subplot(), np.angle(values), PHASE_COLOURS, title, extent=extent)
    return save(figure, path)


def draw_preview(found: Reconstruction, scan: Scan, path: Path, title: str) -> Path:
    """Amplitude and phase side by side."""
    values, extent = scanned_object(found, scan)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    show(figure, left, np.abs(values), AMPLITUDE_COLOURS, "Amplitude", extent=extent)
    show(figure, right, np.angle(values), PHASE_COLOURS, "Phase (rad)", extent=extent)
    figure.suptitle(title)
    return save(figure, path)


def draw_probe(found: Reconstruction, path: Path) -> Path:
    """Amplitude and phase of the strongest probe mode; the phase fades where there is no light."""
    modes = found.probe.cpu().numpy()
    probe = modes[np.argmax(np.square(np.abs(modes)).sum((1, 2)))]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    show(figure, left, np.abs(probe), AMPLITUDE_COLOURS, "Probe amplitude")
    light = np.clip(np.abs(probe) / np.abs(probe).max() * 3, 0, 1)
    show(figure, right, np.angle(probe), "twilight", "Probe phase (rad)", alpha=light)
    return save(figure, path)


def draw_misfit(found: Reconstruction, scan: Scan, path: Path) -> Path:
    """Misfit of each pattern at its place in the scan."""
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    points = axes.scatter(scan.x, scan.y, c=found.misfit, s=28, cmap=MISFIT_COLOURS)
    axes.set(title="Misfit of each pattern", xlabel="x (object pixels)", ylabel="y (object pixels)", aspect="equal")
    axes.invert_yaxis()
    figure.colorbar(points, ax=axes, label="Σ(|F| − A)² / ΣA²")
    return save(figure, path)


def draw_curves(history: History, path: Path, mode: str) -> Path:
    """Training and validation loss over epochs."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, label in ((f"{mode}_train_loss_epoch", "training"), (f"{mode}_val_loss", "validation")):
        points = history.get(name, ())
        axes.plot([epoch for _, epoch, _ in points], [value for *_, value in points], marker=".", label=label)
    unit = "Poisson negative log-likelihood a pattern" if mode == "poisson" else "mean |difference| of amplitudes"
    axes.set(title="Learning curves", xlabel="epoch", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return save(figure, path)


def show(figure: Figure, axes: Any, image: npt.NDArray[Any], colours: str, title: str, **options: Any) -> None:
    """``image`` with a colour bar; the range leaves out the outermost half percent on each side."""
    low, high = np.percentile(image, [0.5, 99.5])
    drawn = axes.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation="nearest", **options)
    axes.set_title(title)
    figure.colorbar(drawn, ax=axes, fraction=0.046)


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DOTS)
    return path
