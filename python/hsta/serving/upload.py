"""The film in an upload: one video file, or pictures in order. What they are, their first bytes say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
from PIL import Image

from ..data.film import Film, Frame
from ..data.image_folder import ImageFolder, image_files
from ..data.video import Video
from ..errors import UserError
from .limits import FILMS, PICTURES, PIXELS, TOO_LARGE, Limits

NO_FILM = "this is no film that can be read: expected is a video file (MP4, MOV, MKV, WebM, AVI), or several pictures"


class Upload:
    """The film (`hsta.data.film.Film`) in a video file, or in the pictures of a folder, within the limits.

    Raises `UserError` when it is no film, or too long or too large.
    """

    def __init__(self, path: Path, fps: float | None, limits: Limits):
        self.limits = limits
        if path.is_dir():
            _check_pictures(image_files(path))
            self.film: Film = ImageFolder(path, fps)
        else:
            _check_video(path)
            self.film = Video(path, fps)
        self.notes = self.film.notes

    def __iter__(self) -> Iterator[Frame]:
        count = held = 0
        for frame in self.film:
            count, held = count + 1, held + frame.picture.nbytes
            if held > self.limits.memory * 2**30:
                raise UserError(TOO_LARGE)
            if count > self.limits.frames:
                raise UserError(f"the film has more than {self.limits.frames} frames, which is the limit here: cut it")
            if frame.time > self.limits.seconds:
                raise UserError(f"the film lasts more than {self.limits.seconds:g} seconds, the limit here: cut it")
            yield frame
        if count == 1:
            raise UserError("the film has one frame only: nothing moves in it")


def _check_video(path: Path) -> None:
    # Without this list FFmpeg would read pictures, text and playlists, too.
    try:
        with av.open(str(path), options={"format_whitelist": FILMS, "protocol_whitelist": "file"}) as container:
            for stream in container.streams.video:
                _check_size(stream.width, stream.height)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(NO_FILM) from error


def _check_pictures(paths: Sequence[Path]) -> None:
    sizes = set()
    for number, path in enumerate(paths, 1):
        try:
            with Image.open(path, formats=PICTURES) as image:
                sizes.add(image.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"file {number} is no picture that can be read; expected: {', '.join(PICTURES)}") from error
    if len(sizes) > 1:
        raise UserError(f"the pictures differ in size: {', '.join(f'{w}x{h}' for w, h in sorted(sizes))}")
    _check_size(*sizes.pop())


def _check_size(width: int, height: int) -> None:
    if width * height > PIXELS:
        raise UserError(f"frames of {width}x{height} are too large: at most {PIXELS / 1e6:.1f} million pixels")
