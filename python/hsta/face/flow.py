"""Dense optical flow."""

from __future__ import annotations

import cv2
import numpy as np

from ..errors import UserError

METHODS = ("farneback", "dis", "tvl1")


def check_method(method: str) -> None:
    """Raises `UserError` when this OpenCV cannot compute flow so, ValueError for an unknown ``method``."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "tvl1" and not hasattr(cv2, "optflow"):
        raise UserError(
            "this OpenCV has no TV-L1 optical flow: it is in opencv-contrib-python-headless, "
            "to be installed in place of opencv-python-headless"
        )


def dense_flow(before: np.ndarray, after: np.ndarray, method: str = "farneback") -> np.ndarray:
    """Motion in pixels, float32 (H, W, 2), from one grey uint8 (H, W) image to another.

    Farnebäck's polynomial expansion (2003): on movements below a pixel, as these are, it places the apex
    better than dense inverse search (``dis``, Kroeger et al., 2016), which is made for large ones. ``tvl1`` is
    Zach et al. (2007), which much of the field uses.
    """
    check_method(method)
    if method == "dis":
        return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(before, after, None)
    if method == "tvl1":
        return cv2.optflow.createOptFlow_DualTVL1().calc(before, after, None)
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
