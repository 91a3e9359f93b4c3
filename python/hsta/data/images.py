"""Image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp"}


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB. Raises `UserError` naming the path."""
    import cv2
    import numpy as np

    # Not cv2.imread: it knows no paths but ASCII ones on some systems and only warns of a broken file.
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise UserError(f"not an image, or a broken one: {path}")
    return np.ascontiguousarray(picture[..., ::-1])
