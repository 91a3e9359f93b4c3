"""The shared memory that blocks of the CUDA kernels ask for at launch, as a table for docs/cuda-resources.md.

Patches, rows and tokens are few here: how many there are does not matter.
"""

from __future__ import annotations

import torch

import tests.cuda_on_host.conftest  # noqa: F401 (puts the kernels in place)
from hsta_kernels.ops.add_layer_norm import cuda as norm
from hsta_kernels.ops.cross_modal_attention import cuda as pooling
from hsta_kernels.ops.space_time_attention import cuda as attention
from tests.cuda_on_host.counters import take_shared_memory


def _attention(frames: int, prefix: int, head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    grid = (frames, 64 // frames, "time", prefix, 0.125)
    qkv = torch.zeros(1, prefix + grid[0] * grid[1], 3, 1, head_dim, dtype=dtype)
    out, stats = attention.forward(qkv, *grid)
    forward, _ = take_shared_memory()
    attention.backward(out, qkv, out, stats, *grid)
    return forward, take_shared_memory()[0]


def _pooling(width: int, dtype: torch.dtype) -> tuple[int, int]:
    u, rows = torch.zeros(1, 1, width), torch.zeros(1, 5, width, dtype=dtype)
    z, stats = pooling.forward(u, rows[:, 0], rows[:, 1:], 1e-6)
    forward, _ = take_shared_memory()
    pooling.backward(z, u, rows[:, 0], rows[:, 1:], z, stats, 1e-6)
    return forward, take_shared_memory()[0]


def _norm(width: int, dtype: torch.dtype) -> tuple[int, int]:
    rows, weight = torch.zeros(1, width, dtype=dtype), torch.ones(width)
    norm.forward(rows, rows, weight, weight, 1e-6)
    forward, _ = take_shared_memory()
    norm.backward(rows, rows, rows, weight, 1e-6)
    return forward, take_shared_memory()[0]


def table() -> list[str]:
    lines = ["| case | dtype | forward | backward |", "|---|---|---|---|"]
    take_shared_memory()
    for dtype, name in ((torch.float16, "half types"), (torch.float32, "float32")):
        for frames, prefix, head_dim in ((3, 1, 64), (8, 1, 32), (8, 1, 64), (8, 1, 128), (64, 1, 64), (64, 16, 128)):
            bytes_of_passes = _attention(frames, prefix, head_dim, dtype)
            lines.append(f"| time T={frames} P={prefix} D={head_dim} | {name} | {_columns(bytes_of_passes)} |")
        for width in (384, 768):
            lines.append(f"| crossmodal C={width} | {name} | {_columns(_pooling(width, dtype))} |")
        for width in (768, 8192):
            lines.append(f"| add_layer_norm C={width} | {name} | {_columns(_norm(width, dtype))} |")
    return lines


def _columns(bytes_of_passes: tuple[int, int]) -> str:
    return " | ".join(f"{of:,}" for of in bytes_of_passes)


if __name__ == "__main__":
    print("\n".join(table()))
