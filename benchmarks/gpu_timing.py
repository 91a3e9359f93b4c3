"""Timing on a GPU: the kernels of a call alone, from a replayed CUDA graph, and apart from that a call from the host.

Calls that take the GPU less than some 100 µs are launched no faster than they run: events around one of them time the
host. In a graph the GPU has several of them at hand. Each takes other inputs, together twice the L2 cache, or inputs
that are larger than it; and before each replay a buffer larger than the cache is read. It is not written: lines that
have to be written back would slow down what is measured.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import cuda

MIN_CALLS, MAX_SETS = 4, 16
_FLUSH_BYTES = 256 << 20  # more than any L2 so far


class Rotated:
    """A call that takes the next of several sets of inputs each time. The kernels it launches can be captured."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self.sets = len(calls)
        self._calls = itertools.cycle(calls)

    def __call__(self) -> object:
        return next(self._calls)()


def sets_of_inputs(device: torch.device, size: int) -> int:
    """How many sets of inputs of `size` bytes are twice the L2 cache: one where they are larger, or on a CPU."""
    if device.type != "cuda":
        return 1
    cache = cuda.get_device_properties(device).L2_cache_size
    return max(1, min(MAX_SETS, -(-2 * cache // max(size, 1))))


@contextmanager
def capturable(device: torch.device) -> Iterator[None]:
    """In this block work is on a stream of its own, the default one cannot be captured. First calls belong here too: a
    backward pass runs on the stream of its forward pass."""
    if device.type != "cuda":
        yield
        return
    cuda.synchronize(device)
    try:
        with cuda.stream(_stream(device)):
            yield
    finally:
        cuda.synchronize(device)


@functools.cache
def _stream(device: torch.device) -> cuda.Stream:
    return cuda.Stream(device)


@functools.cache
def _flush_buffer(device: torch.device) -> torch.Tensor:
    return torch.ones(_FLUSH_BYTES // 4, device=device)


class Timer:
    """Times `call`, which has run before, within `capturable`.

    Attributes:
        how: "CUDA graph of 4 calls", or "CUDA events" and why there is no graph.
    """

    def __init__(self, call: Callable[[], object], device: torch.device) -> None:
        self._call, self._device = call, device
        self._run, self._calls, self.how = call, 1, "CUDA events: not to be captured"
        if not isinstance(call, Rotated):
            return
        calls = max(MIN_CALLS, call.sets)
        try:
            graph = self._captured(calls)
        except RuntimeError as error:
            self.how = f"CUDA events: not captured, {(str(error).splitlines() or [''])[0][:100]}"
        else:
            self._run, self._calls, self.how = graph.replay, calls, f"CUDA graph of {calls} calls"

    def _captured(self, calls: int) -> cuda.CUDAGraph:
        for _ in range(calls):  # with each set of inputs, in the order in which they are captured
            self._call()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, stream=cuda.current_stream(self._device)):
            for _ in range(calls):
                self._call()
        return graph

    def seconds(self) -> float:
        """Of one call, on the GPU, with the L2 cache cold."""
        _flush_buffer(self._device).sum()
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        self._run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / self._calls

    def from_the_host(self) -> tuple[float, float]:
        """Seconds of one call that an idle GPU waits for, and of them those that the host takes to launch it."""
        cuda.synchronize(self._device)
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        start = time.perf_counter()
        self._call()
        launched = time.perf_counter() - start
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3, launched
