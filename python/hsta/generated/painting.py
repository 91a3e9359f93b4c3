"""Soft brushes for painting a face with numpy: blends, masks, noise. All masks are float32 in [0, 1]."""

from __future__ import annotations

import cv2
import numpy as np


def blend(image: np.ndarray, colour: np.ndarray | tuple, mask: np.ndarray) -> None:
    """Lay ``colour`` ((3,) or an image) over ``image`` (H, W, 3), in place, where ``mask`` (H, W) says."""
    image += (np.asarray(colour, np.float32) - image) * mask[..., None]


def soft_step(distance: np.ndarray, width: float) -> np.ndarray:
    """1 where ``distance`` is well below zero, 0 well above, smooth over ``width``."""
    t = np.clip(0.5 - distance / width, 0, 1)
    return t * t * (3 - 2 * t)


def blob(x: np.ndarray, y: np.ndarray, cx: float, cy: float, sx: float, sy: float) -> np.ndarray:
    """A Gaussian of height 1."""
    return np.exp(-0.5 * (((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))


def pair(x: np.ndarray, y: np.ndarray, dx: float, cy: float, sx: float, sy: float) -> np.ndarray:
    """Two Gaussians, ``dx`` to either side of the middle line x = 112."""
    return blob(np.abs(x - 112), y, dx, cy, sx, sy)


def smooth_noise(rng: np.random.Generator, cells: int | tuple[int, int], size: int) -> np.ndarray:
    """Noise of unit deviation whose grains are ``size / cells`` pixels wide; the same at every size."""
    rows, columns = (cells, cells) if isinstance(cells, int) else cells
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
