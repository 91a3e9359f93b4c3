"""The points of a face that action units act on.

Coordinates are in pixels of a canonical 224 × 224 frame, x to the right and y down. Names of two-sided points
end in ``_left`` or ``_right``, meaning the left and right of the picture.
"""

from __future__ import annotations

FRAME = 224
SIDES = {"left": -1, "right": 1}  # the direction that leads away from the middle of the face

Landmarks = dict[str, tuple[float, float]]

TWO_SIDED = (
    "brow_inner",
    "brow_middle",
    "brow_outer",
    "lid_upper",
    "lid_lower",
    "eye",
    "eye_corner",
    "cheek",
    "nose_wing",
    "lip_corner",
)
MIDDLE = ("nose_root", "lip_upper", "lip_lower", "chin")
NAMES = tuple(f"{name}_{side}" for name in TWO_SIDED for side in SIDES) + MIDDLE


def mirrored(points: dict[str, tuple[float, float]], centre: float = FRAME / 2) -> Landmarks:
    """Landmarks of a symmetric face from ``{name: (distance from the middle line, y)}``."""
    landmarks = {}
    for name, (distance, y) in points.items():
        if name in TWO_SIDED:
            for side, sign in SIDES.items():
                landmarks[f"{name}_{side}"] = (centre + sign * distance, y)
        else:
            landmarks[name] = (centre, y)
    return landmarks
