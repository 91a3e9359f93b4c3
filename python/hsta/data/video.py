"""Reads and writes video files (PyAV)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ..errors import UserError
from ..files import replacing
from .film import Frame

PROBED = 200  # packets looked at to tell a film from a cover picture
NO_FILM = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
HDR = {16: "PQ", 18: "HLG"}  # AVColorTransferCharacteristic


class Video:
    """The film (`hsta.data.film.Film`) in a video file: its best stream, as a player shows it.

    Times come from the timestamps, not from a declared rate; with ``fps`` they are even, at so many frames a second.
    Rotation and mirror marks and the shape of the pixels are obeyed. Frames that the decoder calls damaged are
    left out, and those that are made from them. Raises `UserError` when there is no such file, it is not a video, or
    none of its frames can be read.
    """

    def __init__(self, path: Path, fps: float | None = None):
        self.path = path
        self.fps = fps
        self.notes: list[str] = []
        self._to_rgb = VideoReformatter()  # one for all frames: each has threads of its own

    def __iter__(self) -> Iterator[Frame]:
        if not self.path.is_file():
            raise UserError(f"no such file or folder: {self.path}")
        self.notes.clear()
        try:
            yield from self._frames()
        except (av.FFmpegError, ValueError) as error:
            raise UserError(f"cannot read {self.path} as a video: {error}") from error

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _frames(self) -> Iterator[Frame]:
        index = self._best_stream()
        with av.open(str(self.path)) as container:
            stream = container.streams[index]
            assert isinstance(stream, VideoStream)
            stream.thread_type = "AUTO"
            # Else Motion JPEG makes up what it cannot read and says nothing.
            stream.codec_context.options = {"err_detect": "explode"}
            clock = _Clock(self.fps, stream.average_rate, self._note)
            size = None
            for frame in self._decode(container, stream):
                picture = self._upright(frame, stream.sample_aspect_ratio)
                size = size or picture.shape[:2]
                if picture.shape[:2] != size:
                    self._note(
                        f"frames change to {picture.shape[1]}x{picture.shape[0]}: fitted into {size[1]}x{size[0]}"
                    )
                    picture = _fit(picture, size)
                yield Frame(clock.read(frame.time), picture)
            if size is None:
                raise UserError("; ".join([f"no frames in {self.path}", *self.notes]))
            self._check_end(container, stream, clock)

    def _best_stream(self) -> int:
        """A cover picture is a video stream too, and comes first in some files."""
        with av.open(str(self.path)) as container:
            streams = [s for s in container.streams.video if not s.disposition & NO_FILM]
            if not streams:
                raise UserError(f"no video in {self.path}")
            if len(streams) == 1:
                return streams[0].index
            packets: Counter[int] = Counter()
            for _, packet in zip(range(PROBED), container.demux(streams), strict=False):
                packets[packet.stream.index] += packet.size > 0

            def rank(stream: VideoStream) -> tuple[bool, bool, int]:
                default = bool(stream.disposition & Disposition.default)
                return packets[stream.index] > 1, default, stream.width * stream.height

            films = [stream for stream in streams if packets[stream.index] > 1]
            best = max(streams, key=rank)
            if len(films) > 1:
                self._note(f"{len(films)} video streams: number {best.index}, {best.width}x{best.height}, is taken")
            return best.index

    def _decode(self, container: av.container.InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
        def packets() -> Iterator[av.Packet | None]:
            try:
                yield from container.demux(stream)  # the last is empty: the decoder gives out what it holds
            except av.FFmpegError:
                self._note("the file cannot be read to its end")
                yield None

        lost, broken = 0, False
        for packet in packets():
            try:
                frames = stream.decode(packet)
            except av.FFmpegError:
                lost, broken = lost + 1, True
                continue
            for frame in frames:
                # What comes after a damaged frame is made from it, up to the next that stands alone.
                broken = frame.is_corrupt or (broken and not frame.key_frame)
                if broken:
                    lost += 1
                else:
                    yield frame
        if lost:
            self._note(f"frames left out because they are damaged or made from damaged ones: {lost}")

    def _upright(self, frame: av.VideoFrame, pixel: Fraction | None) -> np.ndarray:
        if frame.color_trc in HDR:
            self._note(f"high dynamic range ({HDR[frame.color_trc]}): read as it is, without tone mapping")
        picture: np.ndarray = self._to_rgb.reformat(frame, format="rgb24").to_ndarray()
        if pixel and pixel != 1:
            # The longer side grows: no detail is lost.
            height, width = picture.shape[:2]
            width, height = (round(width * pixel), height) if pixel > 1 else (width, round(height / pixel))
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
            self._note(f"pixels of {pixel.numerator}:{pixel.denominator}: made square, {width}x{height}")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            # PyAV's stubs know one kind of side data, another one.
            a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32) / 2**16  # type: ignore[call-overload]
            # A point (x, y) is shown at (a x + c y, b x + d y).
            if min(max(abs(a), abs(d)), max(abs(b), abs(c))) > 0.1:
                self._note("turned by no multiple of 90 degrees: shown at the nearest")
            if abs(b) > abs(a):
                picture, a, d = picture.swapaxes(0, 1), c, b
            picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
        return np.ascontiguousarray(picture)

    def _check_end(self, container: av.container.InputContainer, stream: VideoStream, clock: _Clock) -> None:
        if stream.duration is not None and stream.time_base is not None:
            declared = float(stream.duration * stream.time_base)
        elif container.duration and len(container.streams) == 1:  # sound may go on after the picture
            declared = container.duration / av.time_base
        else:
            return
        if self.fps is None and declared > clock.now + clock.step + 0.5:
            self._note(f"ends after {clock.now:.1f} of the {declared:.1f} seconds that it declares")


class _Clock:
    """Seconds from the first frame, which never go back."""

    def __init__(self, fps: float | None, declared: Fraction | None, note: Callable[[str], None]):
        self.fps = fps
        self.step = 1 / fps if fps else float(1 / declared) if declared else 1 / 30
        self.now = 0.0
        self._note = note
        self._shift: float | None = None  # from timestamps to seconds from the first frame
        self._count = 0

    def read(self, stamp: float | None) -> float:
        self._count += 1
        if self.fps:
            self.now = (self._count - 1) / self.fps
            return self.now
        if stamp is None:
            if self._count > 1:
                self.now += self.step
            self._shift = None
            self._note(f"frames without a timestamp: taken to be {self.step:.3g} seconds apart (--fps tells the rate)")
            return self.now
        if self._shift is None:
            self._shift = -stamp + (self.now + self.step if self._count > 1 else 0.0)
        now = stamp + self._shift
        if self._count > 1 and now <= self.now:
            self._note(f"timestamps go back after {self.now:.2f} seconds: the film is taken to go on")
            self._shift += self.now + self.step - now
            now = self.now + self.step
        elif self._count > 1:
            self.step = now - self.now
        self.now = now
        return now


def _fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As large as ``size`` (height, width) lets it be without changing its shape, in the middle of black."""
    height, width = picture.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = max(round(height * scale), 1), max(round(width * scale), 1)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    fitted = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    fitted[top : top + inner[0], left : left + inner[1]] = cv2.resize(picture, inner[::-1], interpolation=interpolation)
    return fitted


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
