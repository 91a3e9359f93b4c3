"""Reads and writes videos (PyAV) and folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import UserError
from ..files import replacing
from .images import ENDINGS, read_image
from .natural_order import natural_key

LARGEST = 4 * 2**30  # bytes of decoded frames held in memory


def read_frames(path: str | Path) -> tuple[list[np.ndarray], float | None]:
    """All frames, uint8 (H, W, 3) RGB, of a video file or a folder of images, and frames per second.

    A folder's images come in the order of the numbers in their names, and their rate is None. A phone's
    rotation mark is obeyed. Raises `UserError` when there is nothing there, it cannot be read, or it is too
    long to hold.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path), None
    if not path.is_file():
        raise UserError(f"no such file or folder: {path}")
    try:
        return _read_video(path)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"cannot read {path} as a video: {error}") from error


def write_video(path: str | Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write RGB uint8 frames as H.264, nearly lossless: the motions are small. An odd side gains a pixel."""
    if not len(frames):
        raise ValueError("frames must hold at least one frame, got none")
    height, width = frames[0].shape[:2]
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    with replacing(Path(path)) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "preset": "medium"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.pad(frame, padding, mode="edge"), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _read_video(path: Path) -> tuple[list[np.ndarray], float | None]:
    frames: list[np.ndarray] = []
    held = 0
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise UserError(f"no video in {path}")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate
        for frame in container.decode(stream):
            picture = frame.to_ndarray(format="rgb24")
            turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counterclockwise, as np.rot90
            frames.append(np.ascontiguousarray(np.rot90(picture, turns)))
            held += picture.nbytes
            if held > LARGEST:
                raise UserError(f"{path} is too long: over {LARGEST >> 30} GiB of frames; cut it shorter")
    if not frames:
        raise UserError(f"no frames in {path}")
    return frames, float(rate) if rate else None


def _read_folder(path: Path) -> list[np.ndarray]:
    files = [file for file in path.iterdir() if file.suffix.lower() in ENDINGS and not file.name.startswith(".")]
    if not files:
        raise UserError(f"no images ({', '.join(sorted(ENDINGS))}) in {path}")
    frames = [read_image(file) for file in sorted(files, key=lambda file: natural_key(file.stem.lower()))]
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise UserError(f"the images in {path} differ in size: {sorted(shapes)}")
    return frames
