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
    """``length`` frames: an array with the SHA-256 ``checksum``, as ``.npy`` has it, from byte ``offset`` of the file
    ``path`` on. That is of the ``clip`` alone, or, a tar file, a shard of many clips.
    """

    path: Path
    length: int
    checksum: str
    clip: str
    offset: int = 0

    def __len__(self) -> int:
        return self.length

    def open(self) -> np.ndarray:
        """uint8 (N, S, S, 3) RGB, mapped into memory. Raises `UserError` naming file and clip when it is not there, or
        is cut short."""
        import numpy as np

        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("another version of .npy")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                if dtype != np.uint8 or fortran:
                    raise ValueError(f"an array of {dtype}")
                frames = np.memmap(file, np.uint8, "r", file.tell(), shape)
        except FileNotFoundError:
            raise UserError(f"{self.path} is not there, with {self.clip}: {self.remedy}") from None
        except (ValueError, EOFError) as error:
            raise UserError(f"{self.path} is damaged at {self.clip} ({error}): {self.remedy}") from error
        return frames.view(np.ndarray)

    def check(self) -> None:
        """Raises `UserError`, naming file and clip, unless the file holds what was prepared; reads all of it."""
        if checksum(self.open()) != self.checksum:
            raise UserError(f"{self.path} is damaged at {self.clip} (its checksum differs): {self.remedy}")

    def is_whole(self) -> bool:
        """Whether the file holds what was prepared; reads all of it."""
        try:
            self.check()
        except (OSError, UserError):
            return False
        return True

    @property
    def remedy(self) -> str:
        """What makes the file anew, in words."""
        again = "the same hsta shard again" if self.path.suffix == ".tar" else "hsta prepare --overwrite"
        return f"{again} makes it anew"


def checksum(frames: np.ndarray) -> str:
    """SHA-256 of an array in C order."""
    return hashlib.sha256(frames.data).hexdigest()
