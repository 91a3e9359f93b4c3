"""Tensors beyond 2³¹ elements: offsets that do not fit in 32 bits, within 20 GB of memory, one test within 28.

Inputs lie in a few pages: either far apart in memory that is reserved and never touched, or on top of each other (rows
that overlap). What is allocated is written, and compared bit for bit with the same call on a piece of the input.
"""

from __future__ import annotations

import os

import pytest
import torch

from hsta_kernels import backend, backends
from hsta_kernels.ops import add_layer_norm, bias_gelu, cross_modal_attention, space_time_attention

BEYOND = 2**31 + 4099
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built on this machine"),
    pytest.mark.skipif(MEMORY < 20e9, reason="needs a machine with 20 GB of memory"),
]


@pytest.fixture(autouse=True)
def on_the_cpu_kernels():
    with backend("cpu"):
        yield


def far_apart(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The same values, with more than 2³¹ elements between one index of `dim` and the next."""
    strides = list(tensor.contiguous().stride())
    strides[dim] = BEYOND // (tensor.shape[dim] - 1)
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    memory = torch.empty(reach + 1, dtype=tensor.dtype)
    return memory.as_strided(tensor.shape, strides).copy_(tensor)


def overlapping(shape: tuple[int, ...], step: int = 8) -> torch.Tensor:
    """bfloat16 rows that share most of their memory: row i + 1 begins `step` elements after row i."""
    *leading, width = shape
    rows = torch.Size(leading).numel()
    memory = torch.randn(rows * step + width).bfloat16()
    return memory.as_strided((rows, width), (step, 1)).unflatten(0, leading)


@pytest.mark.parametrize("dim", (0, 1, 2, 3))
@pytest.mark.parametrize("axis", ("time", "space", "joint"))
def test_attention_reads_far_apart(axis, dim):
    qkv, grad = torch.randn(2, 13, 3, 2, 16).bfloat16(), torch.randn(2, 13, 2, 16).bfloat16()

    def run(x, g):
        x = x.detach().requires_grad_()
        out = space_time_attention(x, (3, 4), axis, 1)
        return out, *torch.autograd.grad(out, x, g)

    far = run(far_apart(qkv, dim), far_apart(grad, min(dim, 2)))
    for a, b in zip(far, run(qkv, grad), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
@pytest.mark.parametrize("axis", ("time", "space", "joint"))
def test_attention_writes_beyond(axis, backward):
    """Groups of two tokens, enough of them for an output, or a packed gradient, of more than 2³¹ elements."""
    heads, dim = 8, 64
    groups = BEYOND // (heads * dim * (3 if backward else 1)) // 2 + 1
    grid = {"time": (2, groups), "space": (groups, 2), "joint": (1, 2)}[axis]
    batch = groups if axis == "joint" else 1
    tokens = overlapping((batch, grid[0] * grid[1], 3 * heads * dim)).unflatten(2, (3, heads, dim))
    grad = overlapping((batch, grid[0] * grid[1], heads * dim)).unflatten(2, (heads, dim))

    def piece(t: torch.Tensor, chosen: slice) -> torch.Tensor:
        if axis == "joint":
            return t[chosen]
        return t.unflatten(1, grid)[(slice(None),) * (2 if axis == "time" else 1) + (chosen,)].flatten(1, 2)

    def run(x: torch.Tensor, g: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if not backward:
            return space_time_attention(x, grid, axis, 0)
        x = x.detach().requires_grad_()
        return torch.autograd.grad(space_time_attention(x, grid, axis, 0), x, g)[0]

    whole = run(tokens, grad, grid)
    assert whole.numel() > 2**31
    for first in (0, groups // 2, groups - 300):
        chosen = slice(first, first + 300)
        small = {"time": (2, 300), "space": (300, 2), "joint": (1, 2)}[axis]
        assert torch.equal(piece(whole, chosen), run(piece(tokens, chosen), piece(grad, chosen), small))


@pytest.mark.skipif(MEMORY < 28e9, reason="needs a machine with 28 GB of memory")
def test_cross_modal_attention_reads_far_apart_and_writes_beyond():
    width = 512
    weights = [torch.randn(shape).bfloat16() for shape in ((width,), (width,), *[(width, width), (width,)] * 3)]
    weights = [w * width**-0.5 if w.dim() == 2 else w for w in weights]

    def run(query, tokens, grad):
        query, tokens = query.detach().requires_grad_(), tokens.detach().requires_grad_()
        out = cross_modal_attention(query, tokens, *weights, num_heads=2)
        return out, *torch.autograd.grad(out, (query, tokens), grad)

    query, tokens, grad = (torch.randn(s).bfloat16() for s in ((2, width), (2, 9, width), (2, width)))
    for dim in (0, 1):
        for a, b in zip(run(query, far_apart(tokens, dim), grad), run(query, tokens, grad), strict=True):
            assert torch.equal(a, b)

    samples = BEYOND // (9 * width) + 1
    query, tokens = overlapping((samples, width)), overlapping((samples, 9, width))
    grad = grad[:1].expand(samples, width)
    whole = run(query, tokens, grad)
    assert whole[2].numel() > 2**31
    for first in (0, samples // 2, samples - 50):
        chosen = slice(first, first + 50)
        _, grad_query, grad_tokens = run(query[chosen], tokens[chosen], grad[chosen])
        # Only absorbed attention is ours, and the products before it may round by the number of rows.
        torch.testing.assert_close(whole[1][chosen], grad_query)
        torch.testing.assert_close(whole[2][chosen], grad_tokens)


def test_add_layer_norm_reads_far_apart_and_writes_beyond():
    width = 512
    weight, bias = torch.randn(width).bfloat16(), torch.randn(width).bfloat16()

    def run(x, residual, grad):
        x = x.detach().requires_grad_()
        norm, total = add_layer_norm(x, residual, weight, bias)
        return total.detach(), torch.autograd.grad((norm, total), x, (grad, grad))[0]

    x, residual, grad = (torch.randn(3, width).bfloat16() for _ in range(3))
    for a, b in zip(run(*(far_apart(t, 0) for t in (x, residual, grad))), run(x, residual, grad), strict=True):
        assert torch.equal(a, b)

    rows = BEYOND // width + 1
    x, grad = overlapping((rows, width)), overlapping((rows, width))
    residual = residual[:1].expand(rows, width)
    whole = run(x, residual, grad)
    for first in (0, rows // 2, rows - 300):
        chosen = slice(first, first + 300)
        for a, b in zip(whole, run(x[chosen], residual[chosen], grad[chosen]), strict=True):
            assert a.numel() > 2**31 and torch.equal(a[chosen], b)


def test_bias_gelu_reads_far_apart_and_writes_beyond():
    width = 512
    bias = torch.randn(width).bfloat16()

    def run(x, grad):
        x = x.detach().requires_grad_()
        out = bias_gelu(x, bias)
        return out.detach(), torch.autograd.grad(out, x, grad)[0]

    x, grad = torch.randn(3, width).bfloat16(), torch.randn(3, width).bfloat16()
    for a, b in zip(run(far_apart(x, 0), far_apart(grad, 0)), run(x, grad), strict=True):
        assert torch.equal(a, b)

    rows = BEYOND // width + 1
    x, grad = overlapping((rows, width)), overlapping((rows, width))
    whole = run(x, grad)
    for first in (0, rows // 2, rows - 300):
        chosen = slice(first, first + 300)
        for a, b in zip(whole, run(x[chosen], grad[chosen]), strict=True):
            assert a.numel() > 2**31 and torch.equal(a[chosen], b)
