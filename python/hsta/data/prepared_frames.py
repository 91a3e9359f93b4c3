"""The frames of a prepared clip: one array in a file, of which only what is looked at is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class PreparedFrames:
    """``length`` frames in the file ``path``, whose array has the SHA-256 ``checksum``."""

    path: Path
    length: int
    checksum: str

    def __len__(self) -> int:
        return self.length

    def open(self) -> np.ndarray:
        """uint8 (N, S, S, 3) RGB, mapped into memory. Raises `UserError` naming the file when it is cut short."""
        import numpy as np

        try:
            frames = np.load(self.path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise UserError(f"{self.path} is damaged ({error}): hsta prepare --overwrite makes it anew") from error
        return frames.view(np.ndarray)

    def is_whole(self) -> bool:
        """Whether the file holds what was prepared; reads all of it."""
        try:
            return checksum(self.open()) == self.checksum
        except (OSError, UserError):
            return False


def checksum(frames: np.ndarray) -> str:
    """SHA-256 of an array in C order."""
    return hashlib.sha256(frames.data).hexdigest()
