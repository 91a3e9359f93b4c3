"""A search as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..results.score_plots import BLUE, ORANGE, save
from .search import Trial
from .space import BY_FACTOR


def plot_search(path: Path, trials: Sequence[Trial], best: int, figure_name: str, title: str) -> None:
    """The score of each trial, in their order and over each setting; the ``best``, counted from 0, in another colour.

    The line is the best so far. ``title`` may have lines.
    """
    names, scores = list(trials[0].settings), [trial.score for trial in trials]
    figure = Figure(figsize=(2.9 * (1 + len(names)), 3.1), layout="constrained")
    first, *others = np.ravel(figure.subplots(1, 1 + len(names), sharey=True))
    numbers = range(1, 1 + len(trials))
    first.plot(numbers, np.maximum.accumulate(scores), color=BLUE, linewidth=1, drawstyle="steps-post")
    _points(first, list(numbers), scores, best)
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    first.set_xlabel("trial")
    first.set_ylabel(f"{figure_name} of subjects not trained on")
    for axes, name in zip(others, names, strict=True):
        values = [trial.settings[name] for trial in trials]
        if name in BY_FACTOR:
            axes.set_xscale("log")
        _points(axes, values, scores, best)
        axes.set_xlabel(name)
    figure.suptitle(title.replace("$", r"\$"), fontsize="small")
    save(figure, path)


def _points(axes: Axes, values: list, scores: Sequence[float], best: int) -> None:
    axes.scatter(values, scores, color=BLUE, s=14)
    axes.scatter(values[best : best + 1], scores[best : best + 1], color=ORANGE, s=40, zorder=3)
    axes.spines[["top", "right"]].set_visible(False)
