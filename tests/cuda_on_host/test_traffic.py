"""Bytes that the CUDA kernels move, counted in the emulator, against the floor of the operator.

Every 32-byte sector counts once for each block that reads or writes it; what all blocks read, a GPU keeps in its cache,
and it counts once. The kernels must stay within 1.2 times the bytes that any implementation moves.
"""

from __future__ import annotations

import pytest
import torch

from hsta_kernels.ops.cross_modal_attention import cuda as absorbed_attention
from tests.cuda_on_host.counters import share
from tests.cuda_on_host.counters import take_traffic as take

HALF = torch.float16


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    take()


@pytest.mark.parametrize(("tokens", "width"), [(588, 768), (324, 384)])
def test_crossmodal_pass(tokens, width):
    query, rows = torch.randn(1, width, dtype=HALF), torch.randn(1, tokens + 1, width, dtype=HALF)[:, 1:]
    u = torch.randn(1, 12, width)
    floor = tokens * width * HALF.itemsize
    shared = share(u)
    z, stats = absorbed_attention.forward(u, query, rows, 1e-6)
    assert floor <= take() + shared <= 1.2 * floor
    shared = share(u, z)  # z stands for its own gradient, too
    absorbed_attention.backward(z, u, query, rows, z, stats, 1e-6)
    assert 2 * floor <= take() + shared <= 1.2 * 2 * floor
