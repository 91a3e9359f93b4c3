"""Pictures of attention for a page: over space as shaded patches, on a face or on nothing, and over time as a curve."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .attention import Attention, Example
from .score_plots import BLUE, ORANGE, open_axes

SIDE = 160  # pixels of a face, which is shown at 128 and printed
LEVELS = 8
STRONGEST = 0.72  # what is seen of a face under the most attention is the rest


def webp(face: np.ndarray) -> str:
    """An RGB face, uint8 (H, W, 3), in grey as a data URI."""
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    done, data = cv2.imencode(".webp", grey, [cv2.IMWRITE_WEBP_QUALITY, 80])
    assert done
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode()}"


def over_space(example: Example) -> list[str]:
    """An element ``<svg>`` for each moment, with its face under it or a frame around it.

    The scale ends at four times the clip's mean, so that even attention is faint, and a few patches that get much (as
    of background may, see `plots`) leave the others to be seen. A border on the right and below may have no patch.
    """
    weights, faces = example.attention.weights, example.faces
    levels = np.rint(LEVELS * np.minimum(weights / (4 * weights.mean()), 1)).astype(int)
    side = f"{1 / example.attention.patch:.5g}"  # patches
    pictures = []
    for place, level in enumerate(levels):
        if faces is None:
            below, kind = f'<rect width="{side}" height="{side}" fill="none" stroke="#888" stroke-width=".1"/>', "plain"
        else:
            below, kind = f'<image width="{side}" height="{side}" href="{webp(faces[place])}"/>', "face"
        pictures.append(
            f'<svg class="{kind}" viewBox="0 0 {side} {side}" role="img" aria-label="Attention over space">'
            f"{below}{_shades(level)}</svg>"
        )
    return pictures


def _shades(levels: np.ndarray) -> str:
    """A path for each level above 0: its patches, those beside each other as one piece."""
    shades = []
    for level in range(1, LEVELS + 1):
        pieces = []
        for y, row in enumerate(np.pad(levels == level, ((0, 0), (1, 1)))):
            starts, ends = np.flatnonzero(np.diff(row.astype(int))).reshape(-1, 2).T
            pieces += [f"M{start} {y}h{end - start}v1h-{end - start}z" for start, end in zip(starts, ends, strict=True)]
        if pieces:
            opacity = f"{STRONGEST * level / LEVELS:.3g}"
            shades.append(f'<path fill="{ORANGE}" fill-opacity="{opacity}" d="{"".join(pieces)}"/>')
    return f'<g shape-rendering="crispEdges">{"".join(shades)}</g>'


def over_time(attention: Attention) -> Figure:
    """The share of each moment at the frames that it spans; dashed is the apex that annotators named."""
    figure = Figure(figsize=(4.2, 1.7), layout="constrained")
    axes = figure.subplots()
    middles = [float(np.mean(frames)) for frames in attention.moments]
    axes.plot(middles, [100 * share for share in attention.over_time], color=ORANGE, marker="o", markersize=4)
    if attention.apex is not None:
        axes.axvline(attention.apex, color=BLUE, linestyle="--", linewidth=1)
        axes.annotate("apex", (attention.apex, 0), (3, 3), xycoords=("data", "axes fraction"),
                      textcoords="offset points", color=BLUE)  # fmt: skip
    axes.set_ylim(0, 125 * max(attention.over_time))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("frame from the onset")
    axes.set_ylabel("attention (%)")
    open_axes(axes)
    return figure
