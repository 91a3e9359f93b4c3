"""A film: frames, and when each of them was taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np

LARGEST = 4 * 2**30  # bytes of decoded frames held in memory


class Frame(NamedTuple):
    """``time`` in seconds from the first frame; ``picture`` uint8 (H, W, 3) RGB."""

    time: float
    picture: np.ndarray


class Film(Protocol):
    """Iterating reads it from its first frame to its last; times increase, and pictures are of one size."""

    notes: list[str]
    """What was not as it should be and what was done about it, a line each: complete once the film is read."""

    def __iter__(self) -> Iterator[Frame]: ...


def hold(film: Film, name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """All pictures of a film and their times, float64 (N,). Raises `UserError` when they are too many to hold."""
    import numpy as np

    pictures: list[np.ndarray] = []
    times: list[float] = []
    held = 0
    for time, picture in film:
        held += picture.nbytes
        if held > LARGEST:
            raise UserError(f"{name} is too long: over {LARGEST >> 30} GiB of frames; cut it shorter, or use --spot")
        pictures.append(picture)
        times.append(time)
    return pictures, np.array(times)
