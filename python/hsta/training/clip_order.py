"""The order in which a training sees the clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class BalancedSampler:
    """Clips of an epoch in random order, as many of each class: of rare classes clips come again.

    The order is a function of seed and ``epoch``, which the training sets; each of several devices (``ranks``)
    gets every so many-th clip of it. Within a class no clip comes a further time before all others have.
    """

    # No set_epoch: Lightning would call it with the number of passes since the process began.
    epoch = 0

    def __init__(self, labels: Sequence[int], seed: int, rank: int = 0, ranks: int = 1):
        array = np.asarray(labels)
        self.classes = [np.flatnonzero(array == label) for label in np.unique(array)]
        self.length = len(labels)
        self.seed = seed
        self.rank = rank
        self.ranks = ranks

    def __len__(self) -> int:
        return self.length // self.ranks

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        share = -(-self.length // len(self.classes))
        drawn = []
        for members in self.classes:
            rounds = [rng.permutation(members) for _ in range(-(-share // len(members)))]
            drawn.append(np.concatenate(rounds)[:share])
        # One of each class in turn, so that cutting to length costs no class more than one clip.
        turns = np.stack(drawn, axis=1)
        order = rng.permuted(turns, axis=1).ravel()[: self.length]
        return iter(rng.permutation(order)[self.rank :: self.ranks][: len(self)].tolist())
