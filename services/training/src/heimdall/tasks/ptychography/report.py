"""What a training run ends with: figures, pictures and a bundle of plain arrays on the test patterns."""

from __future__ import annotations

from pathlib import Path

from heimdall.errors import DataError
from heimdall.tasks.base import FitResult, Report
from heimdall.tasks.ptychography.datamodule import PtychographyData
from heimdall.tasks.ptychography.evaluate import compare, truth_box
from heimdall.tasks.ptychography.module import PtychographyModule
from heimdall.tasks.ptychography.outputs import write_reconstruction
from heimdall.tasks.ptychography.pictures import draw_curves
from heimdall.tasks.ptychography.reconstruct import Reconstruction, reconstruct
from heimdall.tasks.ptychography.scan import Scan


def figures(found: Reconstruction, scan: Scan) -> dict[str, float]:
    """Misfit, and where the scan holds its object the figures beside it."""
    known = {
        "misfit": float(found.misfit.mean()),
        "misfit_worst": float(found.misfit.max()),
        "patterns": float(len(scan)),
    }
    if scan.truth is None:
        return known
    box = found.image.scanned(scan.x, scan.y)
    try:
        return known | compare(*truth_box(found.image, scan.truth, box)).metrics
    except DataError:
        return known  # a scan too narrow to compare still has its misfit


def make_report(result: FitResult, folder: Path) -> Report:
    """Reconstruct the test scan with the best weights; write pictures and arrays into ``folder``."""
    module, data = result.module, result.data
    assert isinstance(module, PtychographyModule)  # noqa: S101 - made by this task
    assert isinstance(data, PtychographyData)  # noqa: S101 - made by this task
    scan = data.test_scan
    found = reconstruct(module.eval(), scan, batch_size=data.config.batch_size)
    metrics = figures(found, scan)
    files = write_reconstruction(found, scan, folder, {"misfit": metrics["misfit"], "patterns": len(scan)})
    files.append(draw_curves(result.history, folder / "learning_curves.png", module.loss_mode))
    rows = [(name.replace("_", " "), f"{value:.4g}") for name, value in metrics.items()]
    return Report(metrics=metrics, columns=("figure", "test patterns"), rows=rows, files=files, notes=data.notes)
