"""Dense optical flow."""

from __future__ import annotations

import cv2
import numpy as np


def dense_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Motion in pixels, float32 (H, W, 2), from one grey uint8 (H, W) image to another.

    Farnebäck's polynomial expansion (2003): on movements below a pixel, as these are, it places the apex
    better than dense inverse search, which is made for large ones.
    """
    return cv2.calcOpticalFlowFarneback(
        before,
        after,
        None,
        pyr_scale=0.5,
        levels=3,
        winsize=11,
        iterations=3,
        poly_n=5,
        poly_sigma=1.1,
        flags=0,
    )
