"""A folder of images as a film."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .film import Frame
from .images import ENDINGS, read_image
from .natural_order import natural_key

ASSUMED_FPS = 30.0


class ImageFolder:
    """The film (`hsta.data.film.Film`) in a folder of images, in the order of the numbers in their names.

    ``fps`` is their number a second; without it, 30 are assumed, and noted. Raises `UserError` when there are no
    images, one cannot be read, or they differ in size.
    """

    def __init__(self, path: Path, fps: float | None = None):
        self.path = path
        self.fps = fps
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        self.notes.clear()
        if self.fps is None:
            self.notes.append(f"a folder tells no rate: {ASSUMED_FPS:g} frames a second are assumed (--fps tells it)")
        shape = None
        for count, file in enumerate(image_files(self.path)):
            picture = read_image(file)
            shape = shape or picture.shape
            if picture.shape != shape:
                raise UserError(f"the images in {self.path} differ in size: {[shape, picture.shape]}")
            yield Frame(count / (self.fps or ASSUMED_FPS), picture)


def image_files(path: Path) -> list[Path]:
    """The images in a folder, in order. Raises `UserError` when there are none."""
    try:
        files = [file for file in path.iterdir() if file.suffix.lower() in ENDINGS and not file.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read the folder {path}: {error.strerror}") from error
    if not files:
        raise UserError(f"no images ({', '.join(sorted(ENDINGS))}) in {path}")
    return sorted(files, key=lambda file: natural_key(file.stem.lower()))
