"""How a face is cut out of the frames of a clip: one way for all of them, so that what moves is the face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from .align import find_points, similarity, warp
from .crop import centre_box, crop_face, find_face
from .detectors import DETECTORS

Box = tuple[int, int, int, int]


class Framing(Protocol):
    @property
    def box(self) -> Box:
        """x, y, width and height of the square that is cut out, before it is turned about its middle."""
        ...

    @property
    def turned(self) -> float:
        """Degrees by which the head leans to the right in the picture, and by which it is turned back."""
        ...

    def crop(self, frames: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
        """The face in RGB uint8 (H, W, 3) frames, each (size, size, 3)."""
        ...


@dataclass(frozen=True)
class Square:
    """A square within the picture."""

    box: Box
    turned: float = 0.0

    def crop(self, frames: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
        return crop_face(frames, self.box, size)

    @classmethod
    def in_the_middle(cls, frames: Sequence[np.ndarray]) -> Square:
        return cls(centre_box(frames[0]))


@dataclass(frozen=True)
class Upright:
    """The similarity that brings a face's ``points`` (K, 2) to their places, as `align_clip` does."""

    points: np.ndarray
    template: np.ndarray

    def crop(self, frames: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
        transform = similarity(self.points, size * self.template)
        return [warp(frame, transform, size) for frame in frames]

    @property
    def box(self) -> Box:
        transform = similarity(self.points, self.template)
        side = 1 / np.hypot(*transform[:, 0])
        x, y = np.linalg.solve(transform[:, :2], 0.5 - transform[:, 2]) - side / 2
        return round(x), round(y), round(side), round(side)

    @property
    def turned(self) -> float:
        transform = similarity(self.points, self.template)
        return float(np.degrees(np.arctan2(-transform[1, 0], transform[0, 0])))


Finder = Callable[[Sequence[np.ndarray]], "Framing | None"]


@cache
def finder(detector: str | None) -> Finder:
    """What finds the face in the frames of a clip: as `hsta prepare` does with this detector, of `DETECTORS`.

    With None it is the square that OpenCV's cascade finds, within the picture. Raises `UserError` where the detector is
    not installed.
    """
    if detector is None:
        return _square
    found = DETECTORS[detector]()

    def upright(frames: Sequence[np.ndarray]) -> Upright | None:
        points = find_points(frames, found)
        return None if points is None else Upright(points, found.template)

    return upright


def _square(frames: Sequence[np.ndarray]) -> Square | None:
    """Sought in the first, middle and last frame."""
    for i in dict.fromkeys((0, len(frames) // 2, len(frames) - 1)):
        if box := find_face(frames[i]):
            return Square(box)
    return None
