"""Every micro-expression of a film: when, and what it is. Holds some two seconds of the film."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import hsta_kernels

from ..data.film import Film
from ..errors import UserError
from ..face.framing import Box, Framing
from ..face.spotting import Found, Spotter
from ..files import write_text
from ..training.checkpoints import Task
from .answer import said
from .recognition import classify, how_to_find

LOOKED_FOR = 1.0  # seconds between two searches for the face
MOVED = 0.25  # of the box's side: a face that has moved further gets a new box
COLUMNS = ("onset", "apex", "offset", "onset_frame", "apex_frame", "offset_frame", "score", "label", "probability")


@dataclass(frozen=True)
class Interval:
    """A micro-expression in a film. Onset, apex and offset in seconds, and as frames counted from 0."""

    file: str
    onset: float
    apex: float
    offset: float
    onset_frame: int
    apex_frame: int
    offset_frame: int
    score: float
    """How far the apex stands out from the frames a quarter of a second before and after, pixels of a 224 frame."""
    label: str
    probabilities: dict[str, float]
    """Of each class, or of each action unit for itself."""
    generated: bool
    """The model learned from generated data."""

    @property
    def probability(self) -> str:
        """Of the label; of several action units of each, as ``0.912+0.634``; nothing for none."""
        names = [self.label] if self.label in self.probabilities else self.label.split("+")
        return "+".join(f"{self.probabilities[name]:.3f}" for name in names if name in self.probabilities)


@dataclass
class Curve:
    """The score of each frame in which a face was followed."""

    times: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def spot_film(
    model: hsta_kernels.HSTA,
    task: Task,
    film: Film,
    *,
    file: str,
    threshold: float,
    curve: Curve,
    detector: str | None = None,
) -> Iterator[Interval]:
    """The intervals of a film, each as soon as it is certain; ``curve`` gets the scores.

    The face is sought once a second, as by `how_to_find`. It is cut out in one way until it has moved away; frames
    before that are not compared with frames after.
    """
    find, size = how_to_find(model, task, detector)
    framing: Framing | None = None
    spotter, looked = Spotter(threshold), -np.inf
    absent = 0

    def tell(found: Sequence[Found]) -> Iterator[Interval]:
        for events, times, score, faces in found:
            apex = events.apex - events.onset
            probabilities = classify(model, task, faces, np.array(times), apex).probabilities
            yield Interval(
                file, times[0], times[apex], times[-1], *events, score,
                said(probabilities, task.action_units), probabilities, task.generated,
            )  # fmt: skip

    def end() -> Iterator[Interval]:
        yield from tell(spotter.finish())
        curve.times += spotter.times
        curve.scores += spotter.scores

    for number, (time, picture) in enumerate(film):
        if framing is None or time >= looked + LOOKED_FOR:
            looked = time
            seen = find([picture])
            if seen is not None and (framing is None or _moved(framing.box, seen.box)):
                yield from end()
                framing, spotter = seen, Spotter(threshold, number)
        if framing is None:
            absent += 1
        else:
            yield from tell(spotter.add(time, framing.crop([picture], size)[0]))
    yield from end()
    if framing is None:
        raise UserError(f"no face found in {file}")
    if absent:
        film.notes.append(f"no face in the first {absent} frames: left out")


def _moved(box: Box, seen: Box) -> bool:
    x, y, width, height = box
    dx, dy = seen[0] + seen[2] / 2 - x - width / 2, seen[1] + seen[3] / 2 - y - height / 2
    return max(abs(dx), abs(dy), abs(seen[2] - width)) > MOVED * width


def write_intervals(path: Path, intervals: Sequence[Interval]) -> None:
    """A csv table of the intervals, a row each, in seconds and in frames."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for i in intervals:
        times = (f"{t:.4f}" for t in (i.onset, i.apex, i.offset))
        frames = (i.onset_frame, i.apex_frame, i.offset_frame)
        table.writerow([*times, *frames, f"{i.score:.3f}", i.label, i.probability])
    write_text(path, text.getvalue())
