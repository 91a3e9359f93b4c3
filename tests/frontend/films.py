"""Writes small films of every kind that cameras and programs make."""

from fractions import Fraction

import av
import numpy as np


def write_film(
    path,
    frames,
    stamps=None,
    *,
    rate=1000,
    codec="libx264",
    pixels="yuv420p",
    bframes=True,
    pixel=None,
    turn=0,
    mirror=False,
    cover=None,
    cover_is_marked=True,
):
    """``frames`` at ``stamps`` (milliseconds; every 40 if left out) in a file that declares ``rate`` a second.

    ``pixel`` is the aspect ratio of a pixel, ``turn`` the degrees counterclockwise by which the film is to be shown
    turned, then mirrored; ``cover`` a picture that comes as the first stream.
    """
    with av.open(str(path), "w") as container:
        if cover is not None:
            picture = container.add_stream("mjpeg", rate=1)
            picture.height, picture.width = cover.shape[:2]
            picture.pix_fmt = "yuvj420p"
            if cover_is_marked:
                picture.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if codec == "libx264":
            stream.options = {"crf": "8", "preset": "ultrafast" if not bframes else "fast"}
        if pixel is not None:
            stream.sample_aspect_ratio = pixel
        if turn or mirror:
            stream.set_display_rotation(turn, hflip=mirror)
        if cover is not None:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
            container.mux(picture.encode())
        for number, frame in enumerate(frames):
            shot = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            shot.pts, shot.time_base = stamps[number] if stamps else 40 * number, Fraction(1, 1000)
            container.mux(stream.encode(shot))
        container.mux(stream.encode())
