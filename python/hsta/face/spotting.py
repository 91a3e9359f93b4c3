"""Where in a video the micro-expression is: onset, apex and offset from the motion of the face."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import UserError
from .flow import dense_flow

SIDE = 112  # frames are measured at this size
# Brows to chin of a face as `find_face` frames it; hair, clothes and background move on their own.
FACE = np.s_[28:98, 22:90]
# The eyes: blinks and glances are faster and larger than any micro-expression.
_y, _x = np.mgrid[:SIDE, :SIDE] / SIDE
EYES = (np.abs(np.abs(_x - 0.5) - 0.152) < 0.085) & (np.abs(_y - 0.41) < 0.055)


# Seconds: from an apex to the frames that it is compared with, to its onset and offset at most, and to another apex.
REACH = 0.25
ONSET_WITHIN = 0.25
OFFSET_WITHIN = 0.5
APART = 0.5
SLACK = 1e-6  # timestamps are rounded


class Events(NamedTuple):
    """``onset`` ≤ ``apex`` ≤ ``offset`` index the frames."""

    onset: int
    apex: int
    offset: int


class Motion:
    """How far a face moves between its frames, which are RGB uint8 crops. No pair of frames is measured twice.

    The measure is the mean of the strongest tenth of optical flow, in pixels of a 224 frame, the head's own
    motion (a similarity fitted to the flow) and the eyes left out. Frames are numbered as they are added.
    """

    def __init__(self, frames: Iterable[np.ndarray] = ()):
        self._grey: dict[int, np.ndarray] = {}
        self._measured: dict[tuple[int, int], float] = {}
        self._count = 0
        for frame in frames:
            self.add(frame)

    def __len__(self) -> int:
        return self._count

    def add(self, frame: np.ndarray) -> None:
        self._grey[self._count] = _grey(frame)
        self._count += 1

    def forget(self, number: int) -> None:
        """No longer hold the frames before this one, nor what was measured from them or to them."""
        self._grey = {t: grey for t, grey in self._grey.items() if t >= number}
        self._measured = {pair: value for pair, value in self._measured.items() if min(pair) >= number}

    def between(self, before: int, after: int) -> float:
        """From one frame to another, by their numbers."""
        if before == after:
            return 0.0
        pair = before, after
        if pair not in self._measured:
            self._measured[pair] = _motion(self._grey[before], self._grey[after])
        return self._measured[pair]

    def since(self, onset: int = 0) -> np.ndarray:
        """From frame ``onset`` to each: float32 (N,), 0 at the onset. Raises ValueError for no such frame."""
        if not 0 <= onset < max(len(self), 1):
            raise ValueError(f"onset must index the {len(self)} frames, got {onset}")
        return np.array([self.between(onset, t) for t in range(len(self))], np.float32)


def spot(motion: Motion, times: Sequence[float]) -> Events:
    """The likeliest micro-expression in the motion of a face whose frames were taken at ``times`` (seconds).

    The apex stands out from the frames a quarter of a second before and after alike (the feature difference
    of Moilanen et al., 2014, on flow): slow head drift cancels. Onset and offset are where, within a quarter of a
    second before and half a second after, the face last and first looks the least like the apex. A frame with no
    other near those places, as beside a pause, is no apex. Raises ValueError for no frames and for as many times as
    there are not frames, `UserError` for frames too far apart to show a micro-expression.
    """
    count = len(motion)
    if not count:
        raise ValueError("motion must be of at least one frame, got none")
    if len(times) != count:
        raise ValueError(f"times must be as many as the {count} frames, got {len(times)}")
    reach = min(REACH, (times[-1] - times[0]) / 2)
    contrast = [_contrast(motion, times, t, reach) for t in range(count)]
    if count > 2 and not any(contrast) and np.median(np.diff(times)) > 2 * REACH:
        raise UserError(
            f"{np.median(np.diff(times)):.2g} seconds from frame to frame are too many: a micro-expression lasts "
            "half a second at most; give --onset and --offset"
        )
    return _around(motion, times, int(np.argmax(contrast)) if count > 2 else count - 1)


class Found(NamedTuple):
    """A micro-expression spotted in a film; ``events`` count the film's frames, ``faces`` are onset to offset."""

    events: Events
    times: list[float]
    """Seconds of the faces."""
    score: float
    """How far the apex stands out, pixels of a 224 frame."""
    faces: list[np.ndarray]


class Spotter:
    """Every micro-expression of a film, while it runs: holds some two seconds of it and no more.

    The score of a frame is what `spot` looks for. An apex is the frame of largest score within half a second on
    either side, if that is at least ``threshold`` (pixels of a 224 frame). ``first`` is the number of the first frame.
    """

    def __init__(self, threshold: float, first: int = 0):
        self.threshold = threshold
        self.first = first
        self.scores: list[float] = []
        """Of the frames so far, but for the last quarter of a second."""
        self.times: list[float] = []
        self._motion = Motion()
        self._faces: dict[int, np.ndarray] = {}
        self._decided = 0

    def add(self, time: float, face: np.ndarray) -> list[Found]:
        """The next frame; returns what has become certain by it."""
        self._faces[len(self.times)] = face
        self._motion.add(face)
        self.times.append(time)
        return self._look(time)

    def finish(self) -> list[Found]:
        """There is no next frame; returns what was still uncertain."""
        return self._look(np.inf)

    def _look(self, now: float) -> list[Found]:
        while len(self.scores) < len(self.times) and self.times[len(self.scores)] + REACH + SLACK <= now:
            self.scores.append(_contrast(self._motion, self.times, len(self.scores), REACH))
        found = []
        known = np.inf if now == np.inf else self.times[len(self.scores) - 1] if self.scores else -np.inf
        while self._decided < len(self.scores) and self.times[self._decided] + APART <= known:
            if self._is_peak(self._decided):
                found.append(self._found(self._decided))
            self._decided += 1
        if self._decided < len(self.times):
            oldest = bisect_left(self.times, self.times[self._decided] - 2.01 * REACH)
            self._motion.forget(oldest)
            for t in range(min(self._faces), oldest):
                del self._faces[t]
        return found

    def _is_peak(self, t: int) -> bool:
        first = bisect_left(self.times, self.times[t] - APART)
        end = bisect_right(self.times, self.times[t] + APART, hi=len(self.scores))
        return self.scores[t] >= self.threshold and t == first + int(np.argmax(self.scores[first:end]))

    def _found(self, apex: int) -> Found:
        onset, apex, offset = _around(self._motion, self.times, apex)
        return Found(
            Events(*(self.first + t for t in (onset, apex, offset))),
            self.times[onset : offset + 1],
            self.scores[apex],
            [self._faces[t] for t in range(onset, offset + 1)],
        )


def _contrast(motion: Motion, times: Sequence[float], t: int, reach: float) -> float:
    """The smaller of the motions to frame ``t`` from some ``reach`` seconds before and after; 0 where there is none."""
    others = [_nearest(times, times[t] + side * (reach + SLACK)) for side in (-1, 1)]
    # Near an end of the film it is too close; beside a pause the nearest is frame t itself.
    if not all(0.66 * reach <= abs(times[other] - times[t]) for other in others):
        return 0.0
    if not others[0] < t < others[1]:
        return 0.0
    return min(motion.between(other, t) for other in others)


def _nearest(times: Sequence[float], wanted: float) -> int:
    after = bisect_left(times, wanted)
    near = range(max(after - 1, 0), min(after + 1, len(times)))
    return min(near, key=lambda t: abs(times[t] - wanted))


def _around(motion: Motion, times: Sequence[float], apex: int) -> Events:
    first = bisect_left(times, times[apex] - ONSET_WITHIN - SLACK)
    last = bisect_right(times, times[apex] + OFFSET_WITHIN + SLACK) - 1
    onset = _edge(motion, apex, range(apex - 1, first - 1, -1))
    offset = _edge(motion, apex, range(apex + 1, last + 1))
    return Events(onset, apex, offset)


def _edge(motion: Motion, apex: int, others: range) -> int:
    """The first of ``others``, going away from the apex, that is nearly as unlike it as any."""
    if not len(others):
        return apex
    unlike = np.array([motion.between(apex, t) for t in others])
    return others[int(np.argmax(unlike >= 0.9 * unlike.max()))]


def _grey(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _motion(before: np.ndarray, after: np.ndarray) -> float:
    """Mean of the strongest tenth of the local motion, pixels of a 224 frame."""
    flow = cv2.blur(dense_flow(before, after), (5, 5))[FACE]
    length = np.linalg.norm(flow - _rigid(flow), axis=-1)[~EYES[FACE]]
    tenth = length.size // 10
    return float(np.partition(length, -tenth)[-tenth:].mean() * 224 / SIDE)


def _rigid(flow: np.ndarray) -> np.ndarray:
    """The part of a flow that moving, turning and nearing the head explains: a robust similarity."""
    height, width = flow.shape[:2]
    y, x = (a.astype(np.float32).ravel() for a in np.mgrid[:height, :width])
    x, y = x - x.mean(), y - y.mean()
    u, v = flow[..., 0].ravel(), flow[..., 1].ravel()
    kept = np.ones(x.size, bool)
    for _ in range(2):
        a, b, c, d = x[kept], y[kept], u[kept], v[kept]
        ma, mb, mc, md = a.mean(), b.mean(), c.mean(), d.mean()
        a, b = a - ma, b - mb
        power = (a @ a + b @ b) or 1.0
        grow, turn = (a @ (c - mc) + b @ (d - md)) / power, (a @ (d - md) - b @ (c - mc)) / power
        ru = mc + grow * (x - ma) - turn * (y - mb)
        rv = md + turn * (x - ma) + grow * (y - mb)
        rest = np.hypot(u - ru, v - rv)
        kept = rest <= np.quantile(rest, 0.6)
    return np.stack([ru, rv], axis=-1).reshape(flow.shape)
