"""What one upload may take of the machine."""

from __future__ import annotations

from dataclasses import dataclass

PIXELS = 3840 * 2160  # of a frame: 4K
PICTURES = ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"]  # as Pillow names them
TOO_LARGE = "the film takes more memory than the limit here: cut it, or make it smaller"
FILMS = "mov,matroska,avi,mpeg,mpegts,ogg,flv,asf"  # as FFmpeg does; playlists, which name other files, are none


@dataclass(frozen=True)
class Limits:
    megabytes: float
    """Bytes of an upload, in millions."""
    seconds: float
    """Length of the film."""
    frames: int
    timeout: float
    """Seconds from the first byte to the answer."""
    at_once: int
    """Uploads that are received or looked at at a time."""
    memory: float
    """GiB of its decoded frames."""

    @property
    def bytes(self) -> int:
        return int(self.megabytes * 1e6)
