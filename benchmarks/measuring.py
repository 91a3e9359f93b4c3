"""Timing: every contender of a case in one process, in turns, on the same inputs.

Taking turns (ours, A, B, ours, A, B, ...) puts whatever else the machine does on all of them alike; the median with the
20th and 80th percentile says how much that was. First calls, which compile and allocate, come before the clock starts.
"""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Call = Callable[[], object]
Clock = Callable[[], float]

MIN_ROUNDS, MAX_ROUNDS = 5, 200
_L2_FLUSH_BYTES = 256 << 20  # more than any L2 so far


class OutOfTime(BaseException):
    """What a call gets that is still running when its time is over; no `except Exception` within it holds that up."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in the block when `seconds` have passed.

    Python does so between two of its instructions: what one call into C takes comes on top. Other threads than the main
    one, and systems without SIGALRM, are not interrupted.
    """
    if seconds == float("inf") or not hasattr(signal, "setitimer") or not _in_main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    try:
        # Again every second: Python drops what is raised in a destructor.
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), 1.0)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, 20th and 80th percentile, number of rounds."""

    p50: float
    p20: float
    p80: float
    rounds: int


def summarize(seconds: list[float]) -> Timing:
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0], 1)
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return Timing(statistics.median(seconds), fifths[0], fifths[3], len(seconds))


def time_once(call: Call, device: torch.device) -> float:
    """Seconds of one call; on a GPU from CUDA events, with the L2 cache emptied before."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    torch.empty(_L2_FLUSH_BYTES, dtype=torch.uint8, device=device).zero_()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def interleave(
    calls: Mapping[str, Call],
    device: torch.device,
    seconds_each: float,
    until: float = float("inf"),
    clock: Clock = time.monotonic,
) -> dict[str, Timing]:
    """Times all `calls`, each of which has run before, in turns.

    The rounds end when each call has had about `seconds_each`, within MIN_ROUNDS and MAX_ROUNDS, and in any case when
    `clock` says `until`: a round that is then under way does not count.

    Raises:
        OutOfTime: not one round was complete.
    """
    rounds: list[list[float]] = []
    enough = clock() + seconds_each * len(calls)
    try:
        with interrupted_after(until - clock()):
            while len(rounds) < MAX_ROUNDS and clock() < (enough if len(rounds) >= MIN_ROUNDS else until):
                rounds.append([time_once(call, device) for call in calls.values()])
    except OutOfTime:
        pass
    if not rounds:
        raise OutOfTime
    return {name: summarize(list(seconds)) for name, seconds in zip(calls, zip(*rounds, strict=True), strict=True)}
