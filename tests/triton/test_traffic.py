"""What the kernels read, write and multiply, counted in Triton's interpreter, against the floors of the operators.

Every element that a load or store touches is counted, whatever a GPU's caches would make of it: rows read again by
another program, partial results, statistics. Only vectors that all programs share (LayerNorm's weights, a sample's u)
count once. The streaming kernels must stay within 1.2 times the bytes that any implementation moves (the crossmodal
pass within 1.25 and 1.6); flash attention must not compute much more than the products it needs.
"""

from __future__ import annotations

import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from hsta_kernels.ops.add_layer_norm import triton as norm
from hsta_kernels.ops.bias_gelu import triton as gelu
from hsta_kernels.ops.cross_modal_attention import triton as absorbed_attention
from hsta_kernels.ops.launch import triton as launching
from hsta_kernels.ops.launch import triton_chain
from hsta_kernels.ops.space_time_attention import triton as attention
from hsta_kernels.ops.space_time_attention.grid import Grid
from hsta_kernels.ops.space_time_attention.operands import Operands

HALF = torch.float16
E = HALF.itemsize


class Work:
    def __init__(self) -> None:
        self.bytes = self.flops = 0
        self.shared: list[tuple[int, int]] = []

    def share(self, *tensors: torch.Tensor) -> None:
        """From now on reading these is free: their bytes are added here."""
        self.bytes += sum(tensor.nbytes for tensor in tensors)
        self.shared = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors]

    def touch(self, pointers, mask) -> None:
        touched = pointers.data[mask.data]
        for first, last in self.shared:
            touched = touched[(touched < first) | (touched >= last)]
        self.bytes += touched.size * pointers.get_element_ty().primitive_bitwidth // 8

    def take(self) -> tuple[int, int]:
        """(bytes, FLOP) since the last call."""
        counted = self.bytes, self.flops
        self.bytes = self.flops = 0
        return counted


@pytest.fixture(params=(80, 90, 100))
def work(request, monkeypatch) -> Work:
    """Counts, with the tiles of an architecture."""
    counted = Work()
    load, store, dot = (
        getattr(InterpreterBuilder, f"create_{name}") for name in ("masked_load", "masked_store", "dot")
    )

    def counting_load(self, pointers, mask, *rest):
        counted.touch(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counting_store(self, pointers, value, mask, *rest):
        counted.touch(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counting_dot(self, a, b, *rest):
        counted.flops += 2 * a.data.size * b.data.shape[-1]
        return dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counting_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counting_store)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", counting_dot)
    monkeypatch.setattr(launching, "architecture", lambda device: request.param)
    for instruction in ("gdc_wait", "gdc_launch_dependents"):  # not in the interpreter, where nothing overlaps
        monkeypatch.setattr(triton_chain, instruction, lambda: None)
    return counted


@pytest.mark.parametrize("frames", (3, 8, 16))
@pytest.mark.parametrize("prefix", (0, 1))
def test_attention_over_time(frames, prefix, work):
    grid = Grid(frames, 49, "time", prefix, 0.125)
    qkv = torch.randn(1, prefix + frames * 49, 3, 1, 64, dtype=HALF)
    out, stats = attention.forward((qkv,), grid)
    tensor = out.numel() * E
    assert work.take()[0] <= 1.2 * 4 * tensor
    attention.backward(out, (qkv,), out, stats, grid)
    assert work.take()[0] <= 1.2 * 7 * tensor


def test_rows_normalized_and_rotated(work):
    """q and k are read and written once more forward, and again backward, where their gradients are turned in place;
    the tables are read once for all heads, for q and for k."""
    grid = Grid(3, 15, "time", 0, 0.125, rotary_pairs="half", qk_norm="layer", qk_norm_eps=1e-6)
    qkv, table, affine = torch.randn(1, 45, 3, 12, 64, dtype=HALF), torch.randn(45, 64), torch.randn(2, 2, 64)
    operands = Operands(rotary=(table, table), affine=affine)
    out, stats = attention.forward((qkv,), grid, operands)
    tensor = out.numel() * E
    assert work.take()[0] <= 1.2 * (4 + 4) * tensor
    attention.backward(out, (qkv,), out, stats, grid, operands)
    assert work.take()[0] <= 1.2 * (7 + 4 + 6) * tensor


@pytest.mark.parametrize(
    ("tokens", "width", "heads", "dtype"), [(588, 768, 12, HALF), (324, 384, 12, HALF), (116, 768, 3, torch.float32)]
)
def test_crossmodal_pass(tokens, width, heads, dtype, work, monkeypatch):
    """With many samples for every multiprocessor. Partial results are float32, a twentieth of the bytes forward; in the
    backward pass a program rereads what it has summed up after every run of 48 rows, from a cache."""
    since = (3, 7) if dtype == torch.float32 else (3, 4)
    if launching.version() < since:
        pytest.skip(f"before Triton {since[0]}.{since[1]} rows of {dtype} are read four times, in chunks of columns")
    monkeypatch.setattr(absorbed_attention, "multiprocessors", lambda device: 1)
    query, rows = torch.randn(1, width, dtype=dtype), torch.randn(1, tokens + 1, width, dtype=dtype)[:, 1:]
    u = torch.randn(1, heads, width)
    work.share(u)
    z, stats = absorbed_attention.forward(u, query, rows, 1e-6)
    assert work.take()[0] <= 1.25 * rows.nbytes
    work.share(u, z)  # z stands for its own gradient, too
    absorbed_attention.backward(z, u, query, rows, z, stats, 1e-6)
    assert work.take()[0] <= 1.6 * 2 * rows.nbytes


def test_crossmodal_pass_of_wide_rows(work):
    """Rows that registers do not hold are read four times, two of them by a program that has just read them."""
    query, rows, u = torch.randn(1, 1536), torch.randn(1, 325, 1536)[:, 1:], torch.randn(1, 12, 1536)
    work.share(u)
    z, stats = absorbed_attention.forward(u, query, rows, 1e-6)
    assert work.take()[0] <= 1.2 * 4 * rows.nbytes
    work.share(u, z)
    absorbed_attention.backward(z, u, query, rows, z, stats, 1e-6)
    assert work.take()[0] <= 1.2 * 5 * rows.nbytes


def test_add_layer_norm(work):
    x, weight = torch.randn(200, 768, dtype=HALF), torch.randn(768)
    work.share(weight)
    _, total = norm.forward(x, x, weight, weight, 1e-6, HALF)
    assert work.take()[0] <= 1.2 * 4 * x.numel() * E
    work.share(weight)
    norm.backward(x, x, total, weight, weight, 1e-6, False)
    assert work.take()[0] <= 1.2 * 4 * x.numel() * E


@pytest.mark.parametrize("rate", (0.0, 0.1))
def test_bias_gelu(rate, work):
    """The mask costs arithmetic and no bytes."""
    x, bias, seed = torch.randn(64, 1536, dtype=HALF), torch.randn(1536), torch.tensor([3]) if rate else None
    work.share(bias)
    gelu.forward(x, bias, rate, seed)
    assert work.take()[0] <= 1.2 * 2 * x.numel() * E
    work.share(bias)
    gelu.backward(x, x, bias, rate, seed)
    assert work.take()[0] <= 1.2 * 3 * x.numel() * E


@pytest.mark.parametrize(("patches", "prefix"), [(196, 0), (196, 1), (324, 1), (588, 1)])
def test_flash_tiles_fit(patches, prefix, work):
    """Products in the tiles over the products needed; 7 products in the backward pass, δ's included, instead of 5."""
    rows = patches + prefix
    qkv = torch.randn(1, rows, 3, 1, 32, dtype=HALF)
    grid = Grid(1, patches, "space", prefix, 0.125)
    out, stats = attention.forward((qkv,), grid)
    product = 2 * rows * rows * 32
    assert work.take()[1] <= 1.2 * 2 * product
    attention.backward(out, (qkv,), out, stats, grid)
    assert work.take()[1] <= 1.25 * 7 * product + 2 * rows * 64 * 32
