"""Where in a video the micro-expression is: onset, apex and offset from the motion of the face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from .flow import dense_flow

SIDE = 112  # frames are measured at this size
# Brows to chin of a face as `find_face` frames it; hair, clothes and background move on their own.
FACE = np.s_[28:98, 22:90]
# The eyes: blinks and glances are faster and larger than any micro-expression.
_y, _x = np.mgrid[:SIDE, :SIDE] / SIDE
EYES = (np.abs(np.abs(_x - 0.5) - 0.152) < 0.085) & (np.abs(_y - 0.41) < 0.055)


class Events(NamedTuple):
    """``onset`` ≤ ``apex`` ≤ ``offset`` index the frames."""

    onset: int
    apex: int
    offset: int


class Motion:
    """How far a face moves between its frames, which are RGB uint8 crops. No pair of frames is measured twice.

    The measure is the mean of the strongest tenth of optical flow, in pixels of a 224 frame, the head's own
    motion (a similarity fitted to the flow) and the eyes left out.
    """

    def __init__(self, frames: Sequence[np.ndarray]):
        self._grey = [_grey(frame) for frame in frames]
        self._measured: dict[tuple[int, int], float] = {}

    def __len__(self) -> int:
        return len(self._grey)

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


def spot(motion: Motion, fps: float = 30.0) -> Events:
    """The likeliest micro-expression in the motion of a face at ``fps`` frames a second.

    The apex stands out from the frames a quarter of a second before and after alike (the feature difference
    of Moilanen et al., 2014, on flow): slow head drift cancels. Onset and offset are where, within half a
    second, the face last and first looks the least like the apex. Raises ValueError for no frames.
    """
    count = len(motion)
    if not count:
        raise ValueError("motion must be of at least one frame, got none")
    reach = max(1, min(round(0.25 * fps), (count - 1) // 2))
    contrast = [
        min(motion.between(t - reach, t), motion.between(t + reach, t)) if reach <= t < count - reach else 0.0
        for t in range(count)
    ]
    apex = int(np.argmax(contrast)) if count > 2 else count - 1
    span = max(1, round(0.5 * fps))
    onset = _edge(motion, apex, range(apex - 1, max(apex - span // 2, 0) - 1, -1))
    offset = _edge(motion, apex, range(apex + 1, min(apex + span, count - 1) + 1))
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
