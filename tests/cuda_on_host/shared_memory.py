"""The shared memory that blocks of the CUDA kernels ask for at launch, as a table for docs/cuda-resources.md."""

from __future__ import annotations

import torch

import tests.kernels  # noqa: F401 (puts the kernels in place)
from hsta_kernels.ops.cross_modal_attention import cuda as absorbed_attention
from tests.cuda_on_host.counters import take_shared_memory


def taken(width: int, heads: int) -> tuple[int, int]:
    """Bytes, in the forward and the backward pass; how many tokens there are does not matter."""
    u, rows = torch.zeros(1, heads, width), torch.zeros(1, 5, width, dtype=torch.float16)
    z, stats = absorbed_attention.forward(u, rows[:, 0], rows[:, 1:], 1e-6)
    forward, _ = take_shared_memory()
    absorbed_attention.backward(z, u, rows[:, 0], rows[:, 1:], z, stats, 1e-6)
    return forward, take_shared_memory()[0]


def table() -> list[str]:
    take_shared_memory()
    lines = ["| width | forward | backward |", "|---|---|---|"]
    for width in (96, 192, 384, 768):
        forward, backward = taken(width, 2)
        lines.append(f"| {width} | {forward:,} | {backward:,} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
