"""A webcam as a film."""

from __future__ import annotations

import time
from collections.abc import Iterator

import cv2
import numpy as np

from ..errors import UserError
from .film import Frame


class Webcam:
    """The film (`hsta.data.film.Film`) of the next ``seconds`` before a webcam; times are those of arrival.

    OpenCV, because PyAV's wheels hold no devices. Raises `UserError` when there is no such camera or it sends nothing.
    """

    def __init__(self, number: int = 0, seconds: float = 10.0):
        self.number = number
        self.seconds = seconds
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        self.notes.clear()
        camera = cv2.VideoCapture(self.number)
        try:
            if not camera.isOpened():
                raise UserError(f"no webcam {self.number} on this machine, or another program has it")
            start = None
            while True:
                sent, picture = camera.read()
                now = time.monotonic()
                if not sent:
                    if start is None:
                        raise UserError(f"webcam {self.number} sends no frames")
                    self.notes.append(f"the webcam stopped after {now - start:.1f} seconds")
                    return
                start = now if start is None else start
                if now - start > self.seconds:
                    return
                yield Frame(now - start, np.ascontiguousarray(picture[..., ::-1]))
        finally:
            camera.release()
