"""What ``hsta predict`` may be pointed at: a video file, a folder of images, a webcam."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError
from .film import Film
from .image_folder import ImageFolder, image_files


def webcam_number(source: Path) -> int | None:
    """0 of ``webcam``, 2 of ``webcam:2``, None of anything else."""
    match = re.fullmatch(r"webcam(?::(\d+))?", str(source))
    return int(match[1] or 0) if match else None


def check_source(source: Path) -> None:
    """Raises `UserError` when there is nothing to look at. Loads no library."""
    if webcam_number(source) is not None:
        return
    if source.is_dir():
        image_files(source)
    elif not source.is_file():
        raise UserError(f"no such file or folder: {source}")


def open_film(source: Path, *, fps: float | None, seconds: float) -> Film:
    """The film at ``source``: frames ``fps`` a second if given, and of a webcam the next ``seconds``."""
    number = webcam_number(source)
    if number is not None:
        from .webcam import Webcam

        return Webcam(number, seconds)
    if source.is_dir():
        return ImageFolder(source, fps)
    from .video import Video

    return Video(source, fps)
