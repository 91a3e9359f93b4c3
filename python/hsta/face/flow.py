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
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        # The stubs ask for an array to write to; OpenCV takes None and makes one.
        return dis.calc(before, after, None)  # type: ignore[call-overload]
    if method == "tvl1":
        # The stubs are of the OpenCV without contrib.
        return cv2.optflow.createOptFlow_DualTVL1().calc(before, after, None)  # type: ignore[attr-defined]
    return cv2.calcOpticalFlowFarneback(  # type: ignore[call-overload]  # None as above
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
