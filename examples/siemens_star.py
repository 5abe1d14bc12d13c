"""The measured Siemens star, side by side: network, refinement, ordinary ePIE. Draws the pictures of the docs.

First train on the even patterns (a few minutes on one core):

    heimdall train ptychography --config examples/siemens-star.toml --logger csv --output-dir outputs/star \
        --train_data_file FOLDER/siemens_star_train.npz --test_data_file FOLDER/siemens_star_test.npz

then, with nothing else running:

    python examples/siemens_star.py --model outputs/star/wts.h5.zip --data FOLDER --output-dir outputs/star/side-by-side
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.bundle import read_bundle
from heimdall.tasks.ptychography.epie import epie
from heimdall.tasks.ptychography.evaluate import first_below, half_bit, half_correlation, resolution
from heimdall.tasks.ptychography.pictures import PHASE_COLOURS, save, scanned_object, show
from heimdall.tasks.ptychography.reconstruct import Reconstruction, assemble, reconstruct, refined
from heimdall.tasks.ptychography.refine import refine, scan_misfit
from heimdall.tasks.ptychography.scan import Scan, read_scan

EPIE_SWEEPS = 60
SWEEPS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 25)
CHOSEN = 6  # sweeps of the picture and of the comparison


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    even, odd = (read_scan(options.data / f"siemens_star_{half}.npz") for half in ("train", "test"))
    module = read_bundle(options.model)

    began = time.perf_counter()
    found = assemble(module, odd)
    seconds = time.perf_counter() - began
    network = Reconstruction(image=found[0], probe=found[1], misfit=scan_misfit(odd, *found))
    facts: dict[str, Any] = {"network": {"misfit": mean(network), "seconds": seconds}}
    given = torch.from_numpy(physics.scale_probe(odd.probe))
    image, probe, curve = epie(odd, given, EPIE_SWEEPS)
    ordinary = Reconstruction(image=image, probe=probe, misfit=scan_misfit(odd, image, probe), curve=tuple(curve))
    facts["epie"] = {"sweeps": EPIE_SWEEPS, "misfit": mean(ordinary), "seconds": curve[-1][0]}
    curves = {"from the network": from_start(odd, network), "from a flat object": from_flat(odd, given)}
    facts["curves"] = {name: [point[:3] for point in points] for name, points in curves.items()}
    final = next(found for sweeps, _, _, found in curves["from the network"] if sweeps == CHOSEN)
    facts["refined"] = {"sweeps": CHOSEN, "misfit": mean(final), "seconds": final.curve[-1][0]}
    facts["ratio_misfit"] = facts["refined"]["misfit"] / facts["epie"]["misfit"]
    facts["ratio_time"] = (seconds + facts["refined"]["seconds"]) / facts["epie"]["seconds"]
    halves = {"network": (reconstruct(module, even), network)}
    halves["refined"] = (refined(even, halves["network"][0], CHOSEN), final)
    facts["resolution"] = {name: resolution(*common(even, odd, *pair)) for name, pair in halves.items()}

    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "siemens-star.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    draw_objects(odd, {"Network alone": network, f"Network + {CHOSEN} sweeps": final, "ePIE, 60 sweeps": ordinary},
                 options.output_dir / "ptychography-star.png")  # fmt: skip
    draw_curves(facts, curves, tuple(curve), options.output_dir / "ptychography-star-curve.png")
    draw_resolution(even, odd, halves, options.output_dir / "ptychography-star-resolution.png")
    print(json.dumps({key: value for key, value in facts.items() if key != "curves"}, indent=1))  # noqa: T201
    for name, points in curves.items():
        print(name, "; ".join(f"{sweeps}: {misfit:.4f}" for sweeps, _, misfit, _ in points))  # noqa: T201


def mean(found: Reconstruction) -> float:
    """Mean misfit over the patterns."""
    return float(found.misfit.mean())


def from_start(scan: Scan, start: Reconstruction) -> list[tuple[int, float, float, Reconstruction]]:
    """Sweeps, seconds, misfit and result of refinements of each length, from the network's object."""
    results = [(sweeps, refined(scan, start, sweeps)) for sweeps in SWEEPS]
    return [(0, 0.0, mean(start), start), *((n, found.curve[-1][0], mean(found), found) for n, found in results)]


def from_flat(scan: Scan, probe: torch.Tensor) -> list[tuple[int, float, float, Reconstruction]]:
    """The same from a flat object and the given probe."""
    points = []
    for sweeps in SWEEPS:
        result = refine(scan, probe, sweeps)
        found = Reconstruction(
            image=result.image, probe=result.probe, misfit=scan_misfit(scan, result.image, result.probe)
        )
        points.append((sweeps, result.curve[-1][0], mean(found), found))
    return points


def common(even: Scan, odd: Scan, first: Reconstruction, second: Reconstruction) -> tuple[Any, Any]:
    """The two objects on the box that both scans cover, square."""
    low = [max(a.min(), b.min()) for a, b in ((even.y, odd.y), (even.x, odd.x))]
    high = [min(a.max(), b.max()) for a, b in ((even.y, odd.y), (even.x, odd.x))]
    start, edge = np.ceil(low).astype(int), int(min(np.floor(high) - np.ceil(low)))
    boxes = []
    for found in (first, second):
        top, left = start - np.array(found.image.corner)
        boxes.append(found.image.values[top : top + edge, left : left + edge])
    return boxes[0], boxes[1]


def draw_objects(scan: Scan, found: dict[str, Reconstruction], path: Path) -> None:
    """Phases and amplitudes, side by side, on one scale each."""
    figure = Figure(figsize=(4.6 * len(found), 8.6), layout="constrained")
    axes = figure.subplots(2, len(found))
    for column, (name, result) in enumerate(found.items()):
        values, extent = scanned_object(result, scan)
        show(figure, axes[0, column], np.angle(values), PHASE_COLOURS, f"{name}: phase (rad)", extent=extent)
        title = f"amplitude, misfit {mean(result):.4f}"
        show(figure, axes[1, column], np.abs(values), "gray", title, extent=extent)
    save(figure, path)


def draw_curves(facts: dict[str, Any], curves: dict[str, Any], ordinary: Any, path: Path) -> None:
    """Misfit over sweeps and over time."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, points in curves.items():
        left.plot([p[0] for p in points], [p[2] for p in points], marker="o", label=name)
        extra = facts["network"]["seconds"] if "network" in name else 0
        right.plot([p[1] + extra for p in points], [p[2] for p in points], marker="o", label=name)
    left.plot(range(1, len(ordinary) + 1), [misfit for _, misfit in ordinary], color="0.5", label="ePIE")
    right.plot([seconds for seconds, _ in ordinary], [misfit for _, misfit in ordinary], color="0.5", label="ePIE")
    left.set(xlabel="sweeps", ylabel="misfit Σ(|F| − A)² / ΣA²", yscale="log", title="Misfit on the odd patterns")
    right.set(xlabel="seconds, the network's own included", title="The same over time")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    save(figure, path)


def draw_resolution(even: Scan, odd: Scan, halves: dict[str, Any], path: Path) -> None:
    """Fourier ring correlation between the reconstructions of the even and of the odd patterns."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, pair in halves.items():
        correlation, pixels = half_correlation(*common(even, odd, *pair))
        rings = np.arange(len(correlation)) / len(correlation)
        crossing = first_below(correlation, half_bit(pixels)) / len(correlation)
        axes.plot(rings, correlation, label=f"{name}: {1 / crossing:.1f} px half period at half a bit")
    axes.plot(rings, half_bit(pixels), "k--", linewidth=1, label="half-bit threshold")
    axes.axhline(0.5, color="0.6", linewidth=1)
    axes.set(xlabel="spatial frequency / Nyquist", ylabel="correlation", ylim=(-0.1, 1.02))
    axes.set_title("Even against odd patterns: phase")
    axes.legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    main()
