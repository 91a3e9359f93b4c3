"""Action units (FACS) as displacement fields."""

from __future__ import annotations

import numpy as np

from .landmarks import SIDES, TWO_SIDED, Landmarks

# Unit: (landmark, pull away from the middle line, pull down, radius in canonical pixels); the strongest
# pull is about 1.
ACTION_UNITS: dict[int, list[tuple[str, float, float, float]]] = {
    1: [("brow_inner", 0.0, -1.0, 12)],
    2: [("brow_outer", 0.0, -1.0, 12)],
    4: [("brow_inner", -0.6, 0.8, 12), ("brow_middle", -0.2, 0.5, 10)],
    5: [("lid_upper", 0.0, -0.7, 6)],
    6: [("cheek", 0.0, -0.9, 15), ("lid_lower", 0.0, -0.4, 8)],
    9: [("nose_wing", 0.1, -0.9, 10), ("lip_upper", 0.0, -0.6, 9), ("nose_root", 0.0, 0.4, 8)],
    12: [("lip_corner", 0.7, -0.7, 13)],
    14: [("lip_corner", -1.0, 0.0, 11)],
    15: [("lip_corner", 0.2, 1.0, 13)],
    25: [("lip_lower", 0.0, 1.0, 11), ("lip_upper", 0.0, -0.3, 9)],
}


def displacement(
    strengths: dict[int, float], landmarks: Landmarks, size: int, sides: tuple[str, ...] = ("left", "right")
) -> np.ndarray:
    """Where the skin goes: float32 (size, size, 2), x and y, in pixels of a ``size`` frame.

    ``strengths`` gives each action unit's pull in canonical pixels; units on one side only are asked for with
    ``sides``.
    """
    scale = size / 224
    axis = (np.arange(size, dtype=np.float32) + 0.5) / scale
    field = np.zeros((size, size, 2), np.float32)
    for unit, strength in strengths.items():
        for name, outward, down, radius in ACTION_UNITS[unit]:
            points = [(f"{name}_{side}", SIDES[side]) for side in sides] if name in TWO_SIDED else [(name, 0)]
            for point, sign in points:
                px, py = landmarks[point]
                # A Gaussian is separable: two lines in place of a plane of exponentials.
                bump = np.outer(np.exp(-0.5 * ((axis - py) / radius) ** 2), np.exp(-0.5 * ((axis - px) / radius) ** 2))
                field[..., 0] += strength * scale * sign * outward * bump
                field[..., 1] += strength * scale * down * bump
    return field


def units_text(units: tuple[int, ...], side: str = "") -> str:
    """The units as annotators write them: ``4+9``, or ``L14`` on one side of the face."""
    return "+".join(f"{side}{unit}" for unit in units)
