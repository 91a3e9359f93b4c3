"""Timing: every contender of a case in one process, in turns, on the same inputs.

Taking turns (ours, A, B, ours, A, B, ...) puts whatever else the machine does on all of them alike; the median with the
20th and 80th percentile says how much that was. First calls, which compile and allocate, come before the clock starts.
"""

from __future__ import annotations

import itertools
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from benchmarks import gpu_timing

Call = Callable[[], object]
Clock = Callable[[], float]

MIN_ROUNDS, MAX_ROUNDS = 5, 200
HOST_CLOCK = "host clock"


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
    """Seconds a call: median, 20th and 80th percentile, number of rounds.

    On a GPU these are of its kernels; `end_to_end` is what a single call takes an idle GPU, waiting for its launches
    included, and `launch` what these take the host, both medians. They are None on a CPU, and where no time was left.
    """

    p50: float
    p20: float
    p80: float
    rounds: int
    how: str = HOST_CLOCK
    end_to_end: float | None = None
    launch: float | None = None


def summarize(seconds: list[float], how: str = HOST_CLOCK) -> Timing:
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0], 1, how)
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return Timing(statistics.median(seconds), fifths[0], fifths[3], len(seconds), how)


class HostTimer:
    """Times a call on the CPU; gpu_timing.Timer is its counterpart."""

    how = HOST_CLOCK

    def __init__(self, call: Call) -> None:
        self._call = call

    def seconds(self) -> float:
        start = time.perf_counter()
        self._call()
        return time.perf_counter() - start


def interleave(
    calls: Mapping[str, Call],
    device: torch.device,
    seconds_each: float,
    until: float = float("inf"),
    clock: Clock = time.monotonic,
) -> dict[str, Timing]:
    """Times all `calls`, each of which has run before, in turns; those for a GPU within `gpu_timing.capturable`.

    The rounds end when each call has had about `seconds_each`, within MIN_ROUNDS and MAX_ROUNDS, and in any case when
    `clock` says `until`: a round that is then under way does not count.

    Raises:
        OutOfTime: not one round was complete.
    """
    rounds: list[list[float]] = []
    timers: dict[str, HostTimer | gpu_timing.Timer] = {}
    from_the_host: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    try:
        with interrupted_after(until - clock()):
            for name, call in calls.items():
                timers[name] = gpu_timing.Timer(call, device) if device.type == "cuda" else HostTimer(call)
            enough = clock() + seconds_each * len(calls)
            while len(rounds) < MAX_ROUNDS and clock() < (enough if len(rounds) >= MIN_ROUNDS else until):
                rounds.append([timer.seconds() for timer in timers.values()])
            for _, (name, timer) in itertools.product(range(MIN_ROUNDS), timers.items()):
                if isinstance(timer, gpu_timing.Timer):
                    from_the_host[name].append(timer.from_the_host())
    except OutOfTime:
        pass
    if not rounds:
        raise OutOfTime
    timings = {}
    for (name, timer), seconds in zip(timers.items(), zip(*rounds, strict=True), strict=True):
        timings[name] = summarize(list(seconds), timer.how)
        if from_the_host[name]:
            end_to_end, launch = map(statistics.median, zip(*from_the_host[name], strict=True))
            timings[name] = replace(timings[name], end_to_end=end_to_end, launch=launch)
    return timings
