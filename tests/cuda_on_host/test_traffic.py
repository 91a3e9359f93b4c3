"""Bytes that the CUDA kernels move, counted in the emulator, against the floor of each operator.

Every 32-byte sector counts once for each block that reads or writes it; what all blocks read, a GPU keeps in its cache,
and it counts once. The streaming kernels must stay within 1.2 times the bytes that any implementation moves.
"""

from __future__ import annotations

import pytest
import torch

from hsta_kernels.ops.add_layer_norm import cuda as norm
from hsta_kernels.ops.cross_modal_attention import cuda as absorbed_attention
from hsta_kernels.ops.space_time_attention import cuda as attention
from hsta_kernels.ops.space_time_attention.grid import Grid
from tests.cuda_on_host.counters import SHARED_MEMORY, share, shared_memory_of
from tests.cuda_on_host.counters import take_traffic as take

HALF = torch.float16
E = HALF.itemsize


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    take()


@pytest.mark.parametrize("frames", (3, 8, 16))
@pytest.mark.parametrize("prefix", (0, 1))
def test_attention_over_time(frames, prefix):
    grid = Grid(frames, 49, "time", prefix, 0.125)
    qkv = torch.randn(1, prefix + frames * 49, 3, 1, 64, dtype=HALF)
    out, stats = attention.forward((qkv,), grid)
    tensor = out.numel() * E
    assert 4 * tensor <= take() <= 1.2 * 4 * tensor
    attention.backward(out, (qkv,), out, stats, grid)
    assert 7 * tensor <= take() <= 1.2 * 7 * tensor


@pytest.mark.parametrize("gpu", SHARED_MEMORY)
def test_attention_over_a_long_time(gpu):
    grid = Grid(64, 5, "time", 1, 0.125)
    qkv = torch.randn(1, 1 + 64 * 5, 3, 1, 128)
    with shared_memory_of(gpu):
        out, stats = attention.forward((qkv,), grid)
        assert 4 * out.nbytes <= take() <= 1.2 * 4 * out.nbytes
        attention.backward(out, (qkv,), out, stats, grid)
        assert 7 * out.nbytes <= take() <= 1.2 * 7 * out.nbytes


def check_crossmodal_pass(tokens: int, width: int, heads: int, dtype: torch.dtype) -> None:
    query, rows = torch.randn(1, width, dtype=dtype), torch.randn(1, tokens + 1, width, dtype=dtype)[:, 1:]
    u = torch.randn(1, heads, width)
    floor = tokens * width * dtype.itemsize
    shared = share(u)
    z, stats = absorbed_attention.forward(u, query, rows, 1e-6)
    assert floor <= take() + shared <= 1.2 * floor
    shared = share(u, z)  # z stands for its own gradient, too
    absorbed_attention.backward(z, u, query, rows, z, stats, 1e-6)
    assert 2 * floor <= take() + shared <= 1.2 * 2 * floor


@pytest.mark.parametrize(("tokens", "width"), [(588, 768), (324, 384)])
def test_crossmodal_pass(tokens, width):
    check_crossmodal_pass(tokens, width, 12, HALF)


@pytest.mark.parametrize("gpu", SHARED_MEMORY)
def test_crossmodal_pass_over_wide_rows(gpu):
    with shared_memory_of(gpu):
        check_crossmodal_pass(256, 1280, 16, torch.float32)


def test_add_layer_norm():
    (x, other), weight = torch.randn(2, 200, 768, dtype=HALF), torch.randn(768)
    floor = 4 * x.numel() * E
    shared = share(weight)
    _, total = norm.forward(x, other, weight, weight, 1e-6, HALF)
    assert floor <= take() + shared <= 1.2 * floor
    shared = share(weight)
    norm.backward(x, other, total, weight, weight, 1e-6, False)
    assert floor <= take() + shared <= 1.2 * floor
