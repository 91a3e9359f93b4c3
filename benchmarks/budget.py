"""How a run's time is shared out among its cases."""

from __future__ import annotations

import time
from collections.abc import Mapping

from benchmarks.measuring import Clock


class Budget:
    """Gives each case its part, by weight, of the time that is left: what one case saves, the later ones have.

    Args:
        end: when, on the clock, all cases have to be done.
        weights: of the cases, by name.
        clock: seconds that only grow.
    """

    def __init__(self, end: float, weights: Mapping[str, float], clock: Clock = time.monotonic) -> None:
        self._end, self._weights, self._clock = end, dict(weights), clock

    @property
    def left(self) -> float:
        """Seconds; never negative."""
        return max(0.0, self._end - self._clock())

    @property
    def waiting(self) -> int:
        """How many cases have not begun."""
        return len(self._weights)

    def begin(self, name: str) -> float:
        """By when, on the clock, the case has to be done that begins now."""
        part = self._weights[name] / sum(self._weights.values())
        del self._weights[name]
        return self._clock() + part * self.left
