"""The image files of a clip."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ..errors import UserError
from .images import Decoding, read_image


class FrameFiles:
    """Image files as RGB frames in order, each read when it is asked for and decoded as the first is.

    In place of a broken one, the nearest that can be read serves: the clip keeps its length, and what was drawn
    from it stays the same whether or not the broken one was met before.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        self.decoding: Decoding | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self))[index]
        self.decoding = self.decoding or self._first_decoding()
        error = None
        for near in sorted(range(len(self)), key=lambda other: abs(other - index)):
            try:
                picture = read_image(self.paths[near], self.decoding)
            except UserError as reason:
                error = error or reason
                continue
            if error:
                _tell_once(f"{error}: the frame {self.paths[near].name} beside it serves")
            return picture
        raise AssertionError("the frame that tells the decoding can be read")

    def _first_decoding(self) -> Decoding:
        """Of the first frame that can be read, so that it does not matter which frame is asked for first."""
        error = None
        for path in self.paths:
            try:
                return Decoding.of(path)
            except UserError as reason:
                error = error or reason
        raise UserError(f"no frame of the clip can be read: {error}")


@cache
def _tell_once(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)
