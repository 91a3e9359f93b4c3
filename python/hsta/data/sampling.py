"""Which frames of a clip the model sees."""

from __future__ import annotations

import numpy as np


def even_in_time(times: np.ndarray) -> np.ndarray:
    """The frames nearest to even steps from the first of increasing ``times`` to the last: as many, int64 (N,).

    Of frames at a constant rate it is each; where the rate varies, some are left out and some repeated.
    """
    steps = np.linspace(times[0], times[-1], len(times))
    return np.rint(np.interp(steps, times, np.arange(len(times)))).astype(np.int64)


def choose_frames(length: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """``num_frames`` ordered indices into a clip of ``length`` frames, int64.

    The clip is cut into equal segments and each gives one frame: its middle, or with ``rng`` (training) one
    drawn from it (segment sampling, Wang et al., 2016). A clip that is too short is repeated at its ends, as
    much on either side, or with ``rng`` a drawn share on either.
    """
    if length < 1 or num_frames < 1:
        raise ValueError(f"length and num_frames must be positive, got {length} and {num_frames}")
    if length < num_frames:
        spare = num_frames - length
        before = spare // 2 if rng is None else int(rng.integers(spare + 1))
        return np.clip(np.arange(num_frames) - before, 0, length - 1)
    edges = np.arange(num_frames + 1) * length / num_frames
    place = 0.5 if rng is None else rng.uniform(size=num_frames)
    chosen = np.floor(edges[:-1] + place * np.diff(edges)).astype(np.int64)
    return np.minimum(chosen, length - 1)
