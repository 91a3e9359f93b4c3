"""Image files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np

# What OpenCV reads, but for floating point, whose white is anybody's guess.
_NAMES = "avif bmp dib gif jp2 jpe jpeg jpg pbm pgm png pnm ppm pxm ras sr tif tiff webp"
ENDINGS = frozenset(f".{name}" for name in _NAMES.split())
ORIENTATION = 0x0112  # the tag of EXIF that tells how a camera was held


@dataclass(frozen=True)
class Decoding:
    """How an image file is turned, as EXIF numbers it from 1, and how many bits its brightness has.

    Frames of a clip are all decoded as the first is: turned or scaled one by one they would seem to move.
    """

    orientation: int
    bits: int

    @classmethod
    def of(cls, path: Path) -> Decoding:
        """Of one file. Raises `UserError` naming the path."""
        data = _bytes(path)
        return cls._of(data, _decode(data, path))

    @classmethod
    def _of(cls, data: bytes, picture: np.ndarray) -> Decoding:
        bits = 8 * picture.dtype.itemsize
        return cls(_orientation(data), 12 if bits == 16 and picture.max() < 4096 else bits)


def read_image(path: Path, decoding: Decoding | None = None) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, of grey, palette, alpha and 8, 12 or 16 bits alike.

    It is decoded as it says itself, or as ``decoding`` says. Raises `UserError` naming the path.
    """
    import numpy as np

    data = _bytes(path)
    picture = _decode(data, path)
    decoding = decoding or Decoding._of(data, picture)
    if picture.dtype == np.uint16:
        picture = np.minimum(picture >> (4 if decoding.bits == 12 else 8), 255).astype(np.uint8)
    return np.ascontiguousarray(_turned(picture, decoding.orientation)[..., ::-1])


def _bytes(path: Path) -> bytes:
    # Not cv2.imread: it knows no paths but ASCII ones on some systems and only warns of a broken file.
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error


def _decode(data: bytes, path: Path) -> np.ndarray:
    """BGR, uint8 or uint16, not turned."""
    import cv2
    import numpy as np

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        picture = None
    if picture is None:
        raise UserError(f"not an image, or a broken one: {path}")
    if picture.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path} has pixels of {picture.dtype}; expected 8 to 16 bits, whole numbers")
    return picture


def _orientation(data: bytes) -> int:
    import PIL
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            number = image.getexif().get(ORIENTATION, 1)
    except (PIL.UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return 1
    return number if number in range(1, 9) else 1


def _turned(picture: np.ndarray, orientation: int) -> np.ndarray:
    """The picture upright; each of EXIF's eight is a transposition, then flips of rows and columns."""
    if orientation >= 5:
        picture = picture.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return picture[::rows, ::columns]
