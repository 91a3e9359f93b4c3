"""Scores as pictures: the confusion matrix, F1 of action units, learning curves; vectors or a file of pixels."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import replacing
from .learning_curves import Curve
from .metrics import Scores
from .unit_metrics import UnitScores

BLUE, ORANGE = "#2c6fa6", "#d1681c"


def save(figure: Figure, path: Path) -> None:
    """Write a png file."""
    with matplotlib.rc_context({"savefig.dpi": 110}), replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def svg(figure: Figure) -> str:
    """The element ``<svg>``, the same for the same figure; text is left as text, in the font of the page."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hsta"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    element = text.getvalue()[text.getvalue().index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return re.sub(r'<g id="[^"]*"', "<g", element)  # several pictures on a page would have the same


def plot_confusion_matrix(path: Path, scores: Scores, title: str) -> None:
    """`confusion_matrix` as a png file."""
    save(confusion_matrix(scores, title), path)


def plot_unit_f1(path: Path, scores: UnitScores, title: str) -> None:
    """`unit_f1` as a png file."""
    save(unit_f1(scores, title), path)


def confusion_matrix(scores: Scores, title: str) -> Figure:
    """Counts in the cells; the colour is the share of the row, which is the truth. ``title`` may have lines."""
    names, matrix = list(map(_plain, scores.class_names)), scores.matrix
    shares = matrix / np.maximum(scores.support, 1)[:, None]
    side = 2.6 + 0.75 * len(names)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    edges = np.arange(len(names) + 1) - 0.5
    # The lighter half of the colours: black is read on all of them, and on what a page makes of them in the dark.
    light = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(0, 0.5, 128)))
    cells = axes.pcolormesh(edges, edges, shares, cmap=light, vmin=0, vmax=1)  # vectors, as imshow's are not
    axes.set_aspect("equal")
    axes.invert_yaxis()
    for (row, column), count in np.ndenumerate(matrix):
        axes.text(column, row, str(count), ha="center", va="center")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    bar = figure.colorbar(cells, label="share of the true class", shrink=0.8)
    assert bar.solids is not None
    bar.solids.set_rasterized(False)
    bar.solids.set_edgecolor("face")  # else the page shines through between its colours
    figure.suptitle(_plain(title), fontsize="small")
    return figure


def unit_f1(scores: UnitScores, title: str) -> Figure:
    """A bar of F1 for each action unit, with the number of clips that show it; the line is the mean."""
    names = [f"{_plain(name)} ({n})" for name, n in zip(scores.class_names, scores.support, strict=True)]
    figure = Figure(figsize=(6.4, 1.6 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, np.nan_to_num(scores.f1), color=BLUE)
    axes.bar_label(bars, ["undefined" if np.isnan(f1) else f"{f1:.2f}" for f1 in scores.f1], padding=3)
    axes.axvline(scores.mean_f1, color=ORANGE, linewidth=1.2)
    axes.set_xlim(0, 1.15)
    axes.set_xticks(np.linspace(0, 1, 5))
    axes.invert_yaxis()
    axes.set_xlabel("F1 (line: mean)")
    axes.set_ylabel("action unit (clips)")
    open_axes(axes)
    figure.suptitle(_plain(title), fontsize="small")
    return figure


def learning_curves(curves: Mapping[str, Curve]) -> Figure:
    """The loss of each fold over the epochs, thin, and their mean over the epochs that all of them have."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    losses = [curve.losses for curve in curves.values()]
    for one in losses:
        axes.plot(_epochs(one), one, color=BLUE, linewidth=0.6, alpha=0.4)
    common = min(map(len, losses))
    mean = np.mean([one[:common] for one in losses], axis=0)
    axes.plot(_epochs(mean), mean, color=ORANGE, linewidth=1.8, marker="." if common == 1 else "")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss in training (thick: mean)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    open_axes(axes)
    return figure


def _epochs(losses: Sequence[float] | np.ndarray) -> range:
    return range(1, len(losses) + 1)


def open_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    """As it is written: between dollars matplotlib reads mathematics."""
    return text.replace("$", r"\$")
