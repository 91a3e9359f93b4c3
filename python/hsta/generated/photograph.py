"""The one real face: scikit-image's photograph of Eileen Collins (NASA, public domain), marked by hand."""

from __future__ import annotations

import cv2
import numpy as np
import skimage.data

from .faces import SIDE, Portrait
from .landmarks import FRAME

# The square of the 512 × 512 picture that puts the eyes where the parametric faces have theirs.
LEFT, TOP, WIDTH = 153, 43, 143

# Pixels of the whole picture.
POINTS = {
    "brow_inner_left": (212, 92),
    "brow_middle_left": (201, 89.5),
    "brow_outer_left": (191, 91),
    "brow_inner_right": (241, 93),
    "brow_middle_right": (252, 92),
    "brow_outer_right": (262, 95),
    "lid_upper_left": (203, 97.5),
    "lid_upper_right": (246.5, 99.5),
    "lid_lower_left": (203, 104),
    "lid_lower_right": (246.5, 106),
    "eye_left": (203, 101),
    "eye_right": (246.5, 103),
    "eye_corner_left": (193.5, 99.5),
    "eye_corner_right": (257, 102),
    "cheek_left": (196, 122),
    "cheek_right": (254, 124),
    "nose_wing_left": (212, 128),
    "nose_wing_right": (236, 128),
    "lip_corner_left": (204, 140),
    "lip_corner_right": (244.5, 141.5),
    "nose_root": (225, 98),
    "lip_upper": (224, 139),
    "lip_lower": (224, 151),
    "chin": (224, 168),
}


def photographed_portrait() -> Portrait:
    """The photograph as a `Portrait`."""
    crop = skimage.data.astronaut()[TOP : TOP + WIDTH, LEFT : LEFT + WIDTH]
    scale = FRAME / WIDTH
    return Portrait(
        np.ascontiguousarray(cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)),
        {name: ((x - LEFT) * scale, (y - TOP) * scale) for name, (x, y) in POINTS.items()},
    )
