"""Finds the face in a frame and crops to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

# A whole face, chin and hairline included, is so much larger than the cascade's square and centred lower.
WIDENED = 1.42
CENTRE = 0.54  # of the square's height, from its top


def find_face(frame: np.ndarray) -> tuple[int, int, int, int] | None:
    """The largest frontal face of an RGB uint8 (H, W, 3) frame as ``(x, y, width, height)``, or None.

    The detector is OpenCV's Haar cascade (Viola and Jones, 2001); its square is widened to hold the whole
    face, and moved or shrunk to lie within the frame.
    """
    found = find_squares(frame)
    if not found:
        return None
    x, y, side = max(found, key=lambda square: square[2])
    height, width = frame.shape[:2]
    return _within(x + side / 2, y + side / 2, min(round(side), width, height), (height, width))


def find_squares(frame: np.ndarray) -> list[tuple[float, float, float]]:
    """Every frontal face of an RGB uint8 (H, W, 3) frame as ``(x, y, side)`` of a square that holds the whole of it.

    The squares may reach beyond the frame.
    """
    # Not equalized: in a scene with large plain areas that loses faces.
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    least = smallest_face(frame)
    found = _cascade().detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(least, least))
    squares = []
    for x, y, width, height in np.asarray(found).tolist():
        side = WIDENED * max(width, height)
        squares.append((x + width / 2 - side / 2, y + CENTRE * height - side / 2, side))
    return squares


def smallest_face(frame: np.ndarray) -> int:
    """Side in pixels of the smallest face that is looked for: smaller ones are of the background."""
    return max(24, min(frame.shape[:2]) // 8)


def centre_box(frame: np.ndarray) -> tuple[int, int, int, int]:
    """The largest square in the middle of a frame, as ``(x, y, width, height)``."""
    side = min(frame.shape[:2])
    return _within(frame.shape[1] / 2, frame.shape[0] / 2, side, frame.shape[:2])


def crop_face(frames: Sequence[np.ndarray], box: tuple[int, int, int, int], size: int) -> list[np.ndarray]:
    """The same ``box`` of every frame, resized to (size, size, 3): one box, so that it adds no motion."""
    x, y, width, height = box
    crops = []
    for frame in frames:
        if not (0 <= x < x + width <= frame.shape[1] and 0 <= y < y + height <= frame.shape[0]):
            raise ValueError(f"box must lie within the frame of shape {frame.shape}, got {box}")
        interpolation = cv2.INTER_AREA if min(width, height) > size else cv2.INTER_CUBIC
        crops.append(cv2.resize(frame[y : y + height, x : x + width], (size, size), interpolation=interpolation))
    return crops


def _within(cx: float, cy: float, side: int, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    x = min(max(round(cx - side / 2), 0), shape[1] - side)
    y = min(max(round(cy - side / 2), 0), shape[0] - side)
    return x, y, side, side


@lru_cache
def _cascade() -> cv2.CascadeClassifier:
    from cv2.data import haarcascades

    cascade = cv2.CascadeClassifier(haarcascades + "haarcascade_frontalface_alt2.xml")
    if cascade.empty():
        raise RuntimeError(f"OpenCV {cv2.__version__} ships no Haar cascades; install opencv-python-headless 4")
    return cascade
