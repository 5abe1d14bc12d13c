"""Pictures of the report. Colours keep their meaning in all of them; all work for colour-blind readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from heimdall.tasks.localization.geometry import Array
from heimdall.tasks.localization.metrics import CHI_SQUARE_68, coverage

if TYPE_CHECKING:
    from heimdall.tasks.localization.report import TestResult

INK, SOFT, GRID = "#22303c", "#7b8794", "#e4e8ec"
NETWORK, TRUTH = "#0b6e99", "#d1495b"
COLOURS = {"null": "#9aa5b1", "solver": "#e09f3e", "test": NETWORK, "map_solver": "#5b8c5a", "bound": "#2f4858"}
LABELS = {
    "null": "centre of training positions",
    "solver": "classical solver",
    "test": "network",
    "map_solver": "solver knowing the terrain",
    "bound": "Cramér–Rao bound",
}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 14,
    "axes.titlepad": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "figure.facecolor": "white",
    "savefig.dpi": 150,
}
RECEIVER: dict[str, Any] = {"linewidths": 1.6, "label": "receiver"}
ELLIPSES = 24  # more would hide each other
History = Mapping[str, Sequence[tuple[int, int, float]]]


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    with rc_context(cast("Any", STYLE)):
        # A canvas of its own: no global state of pyplot, so that it works in any thread and any program
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path)


def draw_map(test: TestResult, path: Path) -> Path:
    """Receivers, true and estimated positions, and 68 % ellipses of some sessions, on the terrain where it is known."""
    with _figure(path, 10.5, 8.8) as figure:
        axes = figure.add_subplot()
        low, high = test.scene.box
        if test.simulated:
            terrain = test.scene.shadow_maps.mean(axis=0).T
            image = axes.imshow(
                terrain,
                extent=(low[0], high[0], low[1], high[1]),
                origin="lower",
                cmap="Greys",
                alpha=0.35,
                interpolation="bicubic",
                zorder=0,
            )
            figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02).set_label("terrain loss, mean of receivers (dB)")
        chosen = np.linspace(0, len(test.truth) - 1, min(ELLIPSES, len(test.truth))).astype(int)
        pairs = np.stack([test.truth[chosen], test.estimate[chosen]], axis=1)
        axes.add_collection(LineCollection(list(pairs), colors=INK, linewidths=0.9, alpha=0.6, zorder=3))
        size = 2 * np.sqrt(CHI_SQUARE_68) * test.sigma[chosen]
        for face, line, alpha in ((NETWORK, "none", 0.10), ("none", NETWORK, 0.55)):
            axes.add_collection(
                EllipseCollection(
                    size[:, 0],
                    size[:, 1],
                    np.zeros(len(chosen)),
                    units="xy",
                    offsets=test.estimate[chosen],
                    offset_transform=axes.transData,
                    facecolors=face,
                    edgecolors=line,
                    linewidths=1,
                    alpha=alpha,
                    zorder=2,
                )
            )
        looks: tuple[tuple[Array, dict[str, Any]], ...] = (
            (test.estimate[chosen], {"s": 30, "color": NETWORK, "zorder": 4, "label": "estimate and 68 % ellipse"}),
            (test.truth[chosen], {"s": 48, "color": TRUTH, "marker": "x", "zorder": 5, "label": "truth"}),
            (test.receivers, {"s": 130, "color": "white", "edgecolors": INK, "marker": "^", "zorder": 6} | RECEIVER),
        )
        for points, look in looks:
            axes.scatter(points[:, 0], points[:, 1], **look)
        _label_receivers(axes, test)
        axes.set(xlim=(low[0] - 2, high[0] + 2), ylim=(low[1] - 2, high[1] + 2), aspect="equal")
        axes.set(xlabel="east of the network's centre (km)", ylabel="north of the network's centre (km)")
        axes.set_title(f"Where the network puts the transmitter: {len(chosen)} of {len(test.truth)} held-out sessions")
        figure.legend(loc="outside lower center", ncols=3)
    return path


def _label_receivers(axes: Any, test: TestResult) -> None:
    order = np.argsort(test.receivers[:, 1])
    placed: list[Any] = []
    for index in order:
        east, north = test.receivers[index]
        # A neighbour's label would cover this one: put it on the other side
        crowded = any(abs(east - x) < 30 and abs(north - y) < 6 for x, y in placed)
        placed.append((east, north))
        axes.annotate(
            test.names[index],
            (east, north),
            xytext=(0, -17 if crowded is False else 11),
            textcoords="offset points",
            ha="center",
            fontsize=10,
            fontweight="bold",
            zorder=7,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def draw_errors(test: TestResult, path: Path) -> Path:
    """Share of sessions with at most a given error, for the network and all it is compared with."""
    with _figure(path, 11.5, 5.8) as figure:
        axes = figure.add_subplot()
        for key, distances in test.distances_m.items():
            kilometres = np.sort(distances) / 1e3
            share = np.arange(1, len(kilometres) + 1) / len(kilometres)
            width = 3.2 if key == "test" else 2
            dashes = "--" if key in ("map_solver", "bound") else "-"
            median = float(np.median(kilometres))
            label = f"{median:.1f} km   {LABELS[key]}"
            axes.plot(kilometres, share, color=COLOURS[key], linewidth=width, linestyle=dashes, label=label, zorder=3)
            axes.plot([median], [0.5], "o", color=COLOURS[key], markersize=7, markeredgecolor="white", zorder=4)
        axes.axhline(0.5, color=SOFT, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_xlim(0.3, 200)
        axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50, 100, 200], ["0.5", "1", "2", "5", "10", "20", "50", "100", "200"])
        axes.minorticks_off()
        axes.set_ylim(0, 1.01)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set(xlabel="distance from the true position (km)", ylabel="share of sessions within it")
        axes.set_title("How far off: network, rivals and limits")
        figure.legend(loc="outside right center", title="median error", alignment="left", labelspacing=0.9)
    return path


def draw_calibration(test: TestResult, path: Path) -> Path:
    """Share of truths inside the ellipse stated to hold a share, and error beside stated uncertainty."""
    with _figure(path, 12, 5.6) as figure:
        left, right = figure.subplots(1, 2)
        shares = np.linspace(0.02, 0.99, 98)
        found = np.array([coverage(test.squares, share) for share in shares])
        spread = 1.96 * np.sqrt(shares * (1 - shares) / len(test.squares))
        left.fill_between(shares, shares - spread, shares + spread, color=GRID, label="chance, 95 %", zorder=1)
        left.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":", zorder=2)
        left.plot(shares, found, color=NETWORK, label="network", zorder=3)
        for share in (0.68, 0.95):
            inside = coverage(test.squares, share)
            left.plot([share], [inside], "o", color=NETWORK, markersize=9, markeredgecolor="white", zorder=4)
        left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="share the ellipse is stated to hold")
        left.set(ylabel="share of true positions inside")
        left.set_title("Is the stated uncertainty true?")
        left.text(
            0.97,
            0.05,
            "\n".join(f"the {share:.0%} ellipse holds {coverage(test.squares, share):.0%}" for share in (0.68, 0.95)),
            ha="right",
            fontweight="bold",
            linespacing=1.6,
        )
        left.legend(loc="upper left")
        stated = np.sqrt((test.sigma**2).sum(axis=1))
        actual = test.distances_m["test"] / 1e3
        right.scatter(stated, actual, s=16, color=NETWORK, alpha=0.45, linewidths=0, label="session")
        ends = np.array([min(stated.min(), 1.0), max(stated.max(), 10.0)])
        right.plot(ends, ends, color=SOFT, linewidth=1, linestyle=":", label="error = stated")
        edges = np.unique(np.quantile(stated, np.linspace(0, 1, 9)))
        bins = np.clip(np.digitize(stated, edges) - 1, 0, len(edges) - 2)
        groups = [bins == index for index in range(len(edges) - 1) if (bins == index).any()]
        right.plot(
            [np.sqrt(np.mean(stated[group] ** 2)) for group in groups],
            [np.sqrt(np.mean(actual[group] ** 2)) for group in groups],
            "o-", color=TRUTH, markeredgecolor="white", markersize=8, label="RMS error of an eighth of the sessions",
        )  # fmt: skip
        right.set(
            xscale="log", yscale="log", xlabel="stated uncertainty, √(σ²east + σ²north) (km)", ylabel="error (km)"
        )
        for axis in (right.xaxis, right.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        right.set_title("Does it know when it does not know?")
        right.legend(loc="lower right")
    return path


def draw_learning_curves(history: History, path: Path) -> Path:
    """Loss and mean error over the epochs, training beside validation, with the best epoch marked."""
    with _figure(path, 12, 5) as figure:
        panels = figure.subplots(1, 2)
        for axes, names, label, scale in zip(
            panels,
            (("train/epoch_loss", "val/loss"), ("train/mae", "val/mae")),
            ("negative log-likelihood", "mean error (km)"),
            (1.0, 1e-3),
            strict=True,
        ):
            for name, colour, text in zip(names, (SOFT, NETWORK), ("training (augmented)", "validation"), strict=True):
                points = history.get(name, ())
                axes.plot([p[1] + 1 for p in points], [p[2] * scale for p in points], color=colour, label=text)
            validation = history.get("val/loss", ())
            if validation:
                best = min(validation, key=lambda point: point[2])[1] + 1
                axes.axvline(best, color=TRUTH, linewidth=1, linestyle=":", label=f"best epoch: {best}")
            axes.set(xlabel="epoch", ylabel=label)
            axes.legend()
        panels[0].set_title("What it learns")
        panels[1].set_title("In kilometres")
    return path
