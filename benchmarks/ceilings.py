"""What this machine can do at most, measured in the same run: copy bandwidth and GEMM rate."""

from __future__ import annotations

import functools

import torch

from benchmarks.gpu_timing import capturable
from benchmarks.measuring import Call, interleave


@functools.cache
def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read plus written, of copying a tensor far larger than the caches."""
    size = 1 << (30 if device.type == "cuda" else 27)
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / _seconds(lambda: target.copy_(source), device)


@functools.cache
def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second (multiply and add counted as two) of a large square matrix product."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b, device)


def _seconds(call: Call, device: torch.device) -> float:
    with capturable(device):
        call()
        return interleave({"it": call}, device, 0.5)["it"].p20
