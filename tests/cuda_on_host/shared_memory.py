"""The shared memory that blocks of the CUDA kernels ask for at launch, by GPU, as a table for docs/cuda-resources.md.

Patches, rows and tokens are few here: how many there are does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import tests.kernels  # noqa: F401 (puts the kernels in place)
from hsta_kernels.ops.add_layer_norm import cuda as norm
from hsta_kernels.ops.cross_modal_attention import cuda as absorbed_attention
from hsta_kernels.ops.space_time_attention import cuda as attention
from hsta_kernels.ops.space_time_attention.grid import Grid
from tests.cuda_on_host.counters import SHARED_MEMORY, shared_memory_of, take_shared_memory


def _attention(frames: int, prefix: int, head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    grid = Grid(frames, 64 // frames, "time", prefix, 0.125)
    qkv = torch.zeros(1, prefix + grid[0] * grid[1], 3, 1, head_dim, dtype=dtype)
    out, stats = attention.forward((qkv,), grid)
    forward, _ = take_shared_memory()
    attention.backward(out, (qkv,), out, stats, grid)
    return forward, take_shared_memory()[0]


def _absorbed_attention(width: int, heads: int, dtype: torch.dtype) -> tuple[int, int]:
    u, rows = torch.zeros(1, heads, width), torch.zeros(1, 5, width, dtype=dtype)
    z, stats = absorbed_attention.forward(u, rows[:, 0], rows[:, 1:], 1e-6)
    forward, _ = take_shared_memory()
    absorbed_attention.backward(z, u, rows[:, 0], rows[:, 1:], z, stats, 1e-6)
    return forward, take_shared_memory()[0]


def _norm(width: int, dtype: torch.dtype) -> tuple[int, int]:
    rows, weight = torch.zeros(1, width, dtype=dtype), torch.ones(width)
    norm.forward(rows, rows, weight, weight, 1e-6, dtype)
    forward, _ = take_shared_memory()
    norm.backward(rows, rows, rows, weight, weight, 1e-6, False)
    return forward, take_shared_memory()[0]


def _cases(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], tuple[int, int]]]]:
    for frames, prefix, head_dim in ((3, 1, 64), (8, 1, 32), (8, 1, 64), (8, 1, 128), (64, 1, 64), (64, 2, 128)):
        yield f"time T={frames} P={prefix} D={head_dim}", partial(_attention, frames, prefix, head_dim, dtype)
    for width, heads in ((384, 6), (768, 12), (1280, 16), (1536, 24)):
        yield f"crossmodal C={width} H={heads}", partial(_absorbed_attention, width, heads, dtype)
    for width in (768, 8192):
        yield f"add_layer_norm C={width}", partial(_norm, width, dtype)


def table() -> list[str]:
    limits = (f"{name}: {limit:,}" for name, limit in SHARED_MEMORY.items())
    lines = [f"| case | dtype | {' | '.join(limits)} |", "|---|---|" + "---|" * len(SHARED_MEMORY)]
    take_shared_memory()
    for dtype, name in ((torch.float16, "half types"), (torch.float32, "float32")):
        for case, launched in _cases(dtype):
            columns = []
            for gpu in SHARED_MEMORY:
                with shared_memory_of(gpu):
                    columns.append(", ".join(f"{taken:,}" for taken in launched()))
            lines.append(f"| {case} | {name} | {' | '.join(columns)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
