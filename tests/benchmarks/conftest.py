"""Time that passes where a test says so."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import torch

from benchmarks import ceilings


class FakeClock:
    """A clock for `benchmarks`, by which the alarm goes off that `interrupted_after` sets."""

    def __init__(self) -> None:
        self.now, self._alarm = 0.0, float("inf")

    def __call__(self) -> float:
        return self.now

    def setitimer(self, which: int, seconds: float, interval: float = 0.0) -> None:
        self._alarm = self.now + seconds if seconds else float("inf")

    def spend(self, seconds: float) -> None:
        """Lets time pass, until the alarm."""
        end = self.now + seconds
        if self._alarm <= end:
            self.now, self._alarm = self._alarm, float("inf")
            signal.raise_signal(signal.SIGALRM)
        self.now = end

    def taking(self, first: float, then: float | None = None) -> Callable[[], torch.Tensor]:
        """A call of `first` seconds, and later of `then`."""
        lengths = iter([first])

        def call() -> torch.Tensor:
            self.spend(next(lengths, first if then is None else then))
            return torch.zeros(())

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(signal, "setitimer", fake.setitimer)
    return fake


@pytest.fixture
def known_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "copy_bandwidth", lambda device: 100.0)
    monkeypatch.setattr(ceilings, "gemm_rate", lambda device, dtype: 1000.0)
