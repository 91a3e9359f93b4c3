"""Where in a video the micro-expression is: onset, apex and offset from the motion of the face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .flow import dense_flow

SIDE = 112  # frames are measured at this size
# Brows to chin of a face as `find_face` frames it; hair, clothes and background move on their own.
FACE = np.s_[28:98, 22:90]
# The eyes: blinks and glances are faster and larger than any micro-expression.
_y, _x = np.mgrid[:SIDE, :SIDE] / SIDE
EYES = (np.abs(np.abs(_x - 0.5) - 0.152) < 0.085) & (np.abs(_y - 0.41) < 0.055)


@dataclass(frozen=True)
class Spotted:
    """``onset`` ≤ ``apex`` ≤ ``offset`` index the frames; ``curve`` is `motion_curve` from the onset."""

    onset: int
    apex: int
    offset: int
    curve: np.ndarray


def motion_curve(frames: Sequence[np.ndarray], onset: int = 0) -> np.ndarray:
    """How far the face has moved since frame ``onset``: float32 (N,), in pixels of a 224 frame, 0 at the
    onset.

    ``frames`` are RGB uint8 crops of a face. The measure is the mean of the strongest tenth of optical flow,
    the head's own motion (a similarity fitted to the flow) and the eyes left out.
    """
    if not 0 <= onset < max(len(frames), 1):
        raise ValueError(f"onset must index the {len(frames)} frames, got {onset}")
    grey = [_grey(frame) for frame in frames]
    return np.array([_motion(grey[onset], picture) for picture in grey], np.float32)


def spot(frames: Sequence[np.ndarray], fps: float = 30.0) -> Spotted:
    """The likeliest micro-expression in face crops at ``fps`` frames a second.

    The apex stands out from the frames a quarter of a second before and after alike (the feature difference
    of Moilanen et al., 2014, on flow): slow head drift cancels. Onset and offset are where, within half a
    second, the face last and first looks the least like the apex. Raises ValueError for no frames.
    """
    count = len(frames)
    if not count:
        raise ValueError("frames must hold at least one frame, got none")
    grey = [_grey(frame) for frame in frames]
    reach = max(1, min(round(0.25 * fps), (count - 1) // 2))
    contrast = [
        min(_motion(grey[t - reach], grey[t]), _motion(grey[t + reach], grey[t])) if reach <= t < count - reach else 0.0
        for t in range(count)
    ]
    apex = int(np.argmax(contrast)) if count > 2 else count - 1
    span = max(1, round(0.5 * fps))
    onset = _edge(grey, apex, range(apex - 1, max(apex - span // 2, 0) - 1, -1))
    offset = _edge(grey, apex, range(apex + 1, min(apex + span, count - 1) + 1))
    return Spotted(onset, apex, offset, np.array([_motion(grey[onset], g) for g in grey], np.float32))


def _edge(grey: list[np.ndarray], apex: int, others: range) -> int:
    """The first of ``others``, going away from the apex, that is nearly as unlike it as any."""
    if not len(others):
        return apex
    unlike = np.array([_motion(grey[apex], grey[t]) for t in others])
    return others[int(np.argmax(unlike >= 0.9 * unlike.max()))]


def _grey(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _motion(before: np.ndarray, after: np.ndarray) -> float:
    """Mean of the strongest tenth of the local motion, pixels of a 224 frame."""
    if before is after:
        return 0.0
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
