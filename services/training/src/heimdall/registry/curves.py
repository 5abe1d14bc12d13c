"""Learning curves of several runs in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heimdall.errors import DataError, OutputError
from heimdall.registry.client import asking, connect

if TYPE_CHECKING:
    from heimdall.settings import Settings
    from heimdall.tracking.queries import RunInfo

SYMLOG_RATIO = 30.0  # a curve that spans more than this is drawn on a logarithmic axis where it is positive


def draw_curves(runs: Sequence[RunInfo], metric: str, path: Path, settings: Settings) -> None:
    """Draw ``metric`` over the step, one line a run; the best point of each is marked.

    Raises :class:`DataError` where no run has the metric, :class:`OutputError` where the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    client = connect(settings)
    with asking(settings, f"read the history of {metric}"):
        histories = {run.run_id: client.get_metric_history(run.run_id, metric) for run in runs}
    curves = {
        run_id: sorted((point.step, point.value) for point in points if math.isfinite(point.value))
        for run_id, points in histories.items()
    }
    if not any(curves.values()):
        known = ", ".join(sorted({name for run in runs for name in run.metrics})) or "none"
        raise DataError(f"None of these runs has the metric {metric!r}.", mend=f"They have: {known}.")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for run in runs:
        points = curves[run.run_id]
        if points:
            steps, values = zip(*points, strict=True)
            label = f"{run.name or run.run_id[:8]}  (last {values[-1]:.4g})"
            axes.plot(steps, values, marker="." if len(points) < 60 else None, label=label)
    everything = [value for points in curves.values() for _, value in points]
    if min(everything) > 0 and max(everything) > SYMLOG_RATIO * min(everything):
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise OutputError(f"The picture {path} cannot be written: {error}") from error
    finally:
        plt.close(figure)
