"""Pictures of faces and films: what was predicted and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data.clips import classes_of
from ..data.transforms import flow_image
from ..generated.mark import NO_EVIDENCE
from .answer import answer
from .recognition import Recognition
from .score_plots import BLUE, ORANGE, save
from .spotting import Curve, Interval

EVENTS = ("onset", "apex", "offset")


def plot_movements(path: Path, movements: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """The apex frame of each clip, with its movement since the onset as arrows: pixels are too few to be seen.

    ``movements`` has, by title, onset and apex frame: uint8 (H, W, 3), square.
    """
    figure = Figure(figsize=(2.9 * len(movements), 3.3), layout="constrained")
    for axes, (title, (onset, apex)) in zip(
        np.ravel(figure.subplots(1, len(movements))), movements.items(), strict=True
    ):
        flow = flow_image(onset / np.float32(255), apex / np.float32(255))
        step = len(apex) // 16
        y, x = np.mgrid[step // 2 : len(apex) : step, step // 2 : len(apex) : step]
        axes.imshow(apex)
        axes.quiver(x, y, flow[y, x, 0], flow[y, x, 1], color=ORANGE, angles="xy", scale=16, width=0.007)
        axes.set_title(title)
        axes.axis("off")
    figure.suptitle(f"Movement from onset to apex, arrows fourteen times as long\n({NO_EVIDENCE})", fontsize="small")
    save(figure, path)


def plot_prediction(path: Path, result: Recognition, apex: np.ndarray, patch_shares: dict[str, float]) -> None:
    """The apex frame, CLS attention of both branches over it, the probabilities and the motion curve.

    ``apex`` is the crop of the face, uint8 (H, W, 3); ``patch_shares`` are the sides of a patch of the branches
    video and special as shares of its side.
    """
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=(1.15, 1))
    sure = "" if result.action_units else f" ({max(result.probabilities.values()):.0%})"
    title = f"{result.label}{sure}: {Path(result.file).name}"
    figure.suptitle(title + (f"\n(learned from {NO_EVIDENCE})" if result.generated else ""))

    frame = figure.add_subplot(grid[0, :2])
    frame.imshow(apex)
    frame.set_title(f"apex, frame {result.apex}")
    frame.axis("off")
    for columns, branch in zip((slice(2, 4), slice(4, 6)), ("video", "special"), strict=True):
        axes = figure.add_subplot(grid[0, columns])
        _overlay(axes, apex, np.asarray(result.attention[branch]), patch_shares[branch])
        axes.set_title(f"CLS attention, {branch} branch")

    _bars(figure.add_subplot(grid[1, :2]), result)
    _motion(figure.add_subplot(grid[1, 2:]), result)
    save(figure, path)


def plot_intervals(path: Path, title: str, curve: Curve, intervals: Sequence[Interval], threshold: float) -> None:
    """The score of each frame over time, and the intervals that were spotted with what they are."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.times, curve.scores, color=BLUE, linewidth=1)
    axes.axhline(threshold, color="grey", linestyle=":", linewidth=1)
    axes.set_ylim(0, 1.4 * max([threshold, *curve.scores]))
    for interval in intervals:
        axes.axvspan(interval.onset, interval.offset, color=ORANGE, alpha=0.2)
        axes.annotate(interval.label, (interval.apex, 1), (0, -3), xycoords=("data", "axes fraction"),
                      textcoords="offset points", rotation=90, va="top", ha="center", color=ORANGE)  # fmt: skip
    axes.set_xlabel("seconds")
    axes.set_ylabel("score (pixels at 224)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    save(figure, path)


def _overlay(axes: Axes, picture: np.ndarray, attention: np.ndarray, patch: float) -> None:
    """The grid covers whole patches only: a border on the right and below may have none.

    Vision transformers send much attention to a few patches of background (Darcet et al., 2023); were the
    scale to end at their values, nothing else would be seen.
    """
    height, width = attention.shape
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0))
    axes.imshow(
        np.minimum(attention, np.quantile(attention, 0.95)),
        cmap="inferno",
        alpha=0.5,
        vmin=0,
        interpolation="bilinear",
        extent=(0, width * patch, height * patch, 0),
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
    axes.axis("off")


def _bars(axes: Axes, result: Recognition) -> None:
    names = list(result.probabilities)
    values = list(result.probabilities.values())
    told = classes_of(answer(values, result.action_units))
    bars = axes.barh(names, values, color=[ORANGE if place in told else BLUE for place in range(len(names))])
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
    axes.set_xlim(0, 1.15)
    axes.set_xticks(np.linspace(0, 1, 5))
    axes.invert_yaxis()
    axes.set_xlabel("probability")
    axes.spines[["top", "right"]].set_visible(False)


def _motion(axes: Axes, result: Recognition) -> None:
    curve = result.motion_curve
    axes.plot(result.times, curve, color=BLUE, marker=".")
    axes.axvspan(result.times[result.onset], result.times[result.offset], color=BLUE, alpha=0.08)
    axes.set_ylim(0, 1.4 * max(*curve, 1e-3))  # room above for the names of the events
    for event in EVENTS:
        at = getattr(result, event)
        seconds = result.times[at]
        axes.axvline(seconds, color=ORANGE, linestyle="-" if event == "apex" else "--", linewidth=1.2)
        text = f"{event} {at}"
        axes.annotate(text, (seconds, 1), (3, -3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      rotation=90, va="top", color=ORANGE)  # fmt: skip
    axes.set_xlabel("seconds")
    axes.set_ylabel("motion from onset (pixels at 224)")
    axes.spines[["top", "right"]].set_visible(False)
