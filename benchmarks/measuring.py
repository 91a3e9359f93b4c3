"""Timing: every contender of a case in one process, in turns, on the same inputs.

Taking turns (ours, A, B, ours, A, B, ...) puts whatever else the machine does on all of them alike; the median with the
20th and 80th percentile says how much that was. First calls, which compile and allocate, come before the clock starts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

MIN_ROUNDS, MAX_ROUNDS = 5, 200
_L2_FLUSH_BYTES = 256 << 20  # more than any L2 so far


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


def time_once(call: Callable[[], object], device: torch.device) -> float:
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
    calls: Mapping[str, Callable[[], object]], device: torch.device, seconds_each: float
) -> dict[str, Timing]:
    """Times all `calls` in turns until each has had about `seconds_each`, within MIN_ROUNDS and MAX_ROUNDS."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds_each * len(calls)
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            seconds[name].append(time_once(call, device))
    return {name: summarize(times) for name, times in seconds.items()}
