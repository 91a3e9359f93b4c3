"""One transform for a whole clip, which puts its face upright into the middle of a square frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from ..errors import UserError
from .detectors import Detector, Face

LOOKED_AT = 5  # frames of a clip in which its face is sought


def align_clip(frames: Iterable[np.ndarray], detector: Detector, size: int) -> np.ndarray | None:
    """The face of a clip, uint8 (N, size, size, 3) RGB, or None where there is none.

    ``frames`` are uint8 (H, W, 3) RGB of one size. All are moved alike, so that what moves is the face: by the
    similarity that takes the face's points, averaged over the clip, to the detector's template. What lies beyond the
    picture is black. Raises `UserError` when the frames differ in size.
    """
    frames = list(frames)
    shapes = sorted({frame.shape for frame in frames})
    if len(shapes) > 1:
        raise UserError(f"its frames differ in size: {', '.join(f'{width}x{height}' for height, width, _ in shapes)}")
    points = find_points(frames, detector)
    if points is None:
        return None
    transform = similarity(points, size * detector.template)
    return np.stack([warp(frame, transform, size) for frame in frames])


def find_points(frames: Sequence[np.ndarray], detector: Detector) -> np.ndarray | None:
    """The points of the face that a clip is of, averaged over some of its frames: float64 (K, 2); None for no face."""
    places = np.unique(np.linspace(0, len(frames) - 1, LOOKED_AT).round().astype(int))
    face = follow([detector.faces(frames[place]) for place in places])
    return np.mean([seen.points for seen in face], axis=0) if face else None


def follow(found: Sequence[Sequence[Face]]) -> list[Face]:
    """Of the faces in each of several frames the one that the clip is of, wherever it was found; empty for none.

    That is the largest of those that stay over more than half of the frames; where none stays, the largest.
    """
    tracks: list[list[Face]] = []
    for faces in found:
        free = list(tracks)
        for face in faces:
            away = [np.linalg.norm(track[-1].centre - face.centre) for track in free]
            if away and min(away) < 0.5 * face.size:
                free.pop(int(np.argmin(away))).append(face)
            else:
                tracks.append([face])
    staying = [track for track in tracks if 2 * len(track) > len(found)]
    return max(staying or tracks, key=lambda track: np.mean([face.size for face in track]), default=[])


def similarity(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The turn, scale and shift that bring ``points`` nearest to ``places``, both (K, 2): float64 (2, 3), Umeyama's."""
    p, q = (array @ (1, 1j) for array in (points, places))  # as complex numbers a turn and scale is one factor
    factor = np.vdot(p - p.mean(), q - q.mean()) / np.vdot(p - p.mean(), p - p.mean()).real
    shift = q.mean() - factor * p.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def warp(frame: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """An RGB uint8 frame moved by ``transform`` (2, 3), of points whose first pixel is from 0 to 1: (size, size, 3)."""
    scale = float(np.hypot(*transform[:, 0]))
    height, width = frame.shape[:2]
    if scale < 1:  # areas first: a warp that makes smaller leaves pixels out, and fine texture would flicker
        smaller = max(round(scale * width), 1), max(round(scale * height), 1)
        frame = cv2.resize(frame, smaller, interpolation=cv2.INTER_AREA)
        transform = transform @ np.diag([width / smaller[0], height / smaller[1], 1])
    # OpenCV counts from the middle of the first pixel.
    centred = transform.copy()
    centred[:, 2] += 0.5 * transform[:, :2].sum(axis=1) - 0.5
    return cv2.warpAffine(frame, centred, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT)
