"""Image files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp"}


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB. Raises `UserError` naming the path."""
    # Not cv2.imread: it knows no paths but ASCII ones on some systems and only warns of a broken file.
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise UserError(f"not an image, or a broken one: {path}")
    return np.ascontiguousarray(picture[..., ::-1])
