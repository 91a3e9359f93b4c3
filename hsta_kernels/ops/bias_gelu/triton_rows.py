# mypy: allow-incomplete-defs, no-check-untyped-defs
"""bias_gelu in Triton: matrices of rows in tiles, each element read once and written once.

The dropout mask is that of reference.py: a function of seed, row and column, computed anew in the backward pass.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _halves(words, threshold):
    """Whether the low and the high half of each word are not below the threshold, in a last dimension."""
    return tl.join((words & 0xFFFF) >= threshold, (words >> 16) >= threshold)


@triton.jit
def _kept(seed, threshold, row, first, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr):
    """Which elements of the rows `row` are kept, from column `first` on: a block of Philox serves eight columns."""
    zero = tl.zeros((BLOCK, BLOCK_C // 8), tl.int32)
    block = zero + (first // 8 + tl.arange(0, BLOCK_C // 8))[None, :]
    low, high = zero + row.to(tl.int32)[:, None], zero + (row >> 32).to(tl.int32)[:, None]
    a, b, c, d = tl.philox(tl.load(seed), block, zero, low, high)
    a, b, c, d = _halves(a, threshold), _halves(b, threshold), _halves(c, threshold), _halves(d, threshold)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK, BLOCK_C))


@triton.jit
def _tail(x):
    """|x|, or 15 beyond 8, and Phi(-|x|), the normal distribution's tail there, as in csrc/cpu/gelu.h: absolute error
    below 2^-23. Its logarithm to base 2 is a polynomial: no division, no branch and no cancellation as in 1 - erf."""
    a = tl.abs(x)
    a = tl.where(a > 8.0, 15.0, a)  # a NaN stays
    p = tl.fma(a, -3.224521805123004e-08, 9.533299589747912e-07)  # launches have contraction off
    p = tl.fma(p, a, -1.1876728422066662e-05)
    p = tl.fma(p, a, 8.059794345172122e-05)
    p = tl.fma(p, a, -0.0002891572949010879)
    p = tl.fma(p, a, 9.747507647261955e-06)
    p = tl.fma(p, a, 0.0069459788501262665)
    p = tl.fma(p, a, -0.05244682729244232)
    p = tl.fma(p, a, -0.45921748876571655)
    p = tl.fma(p, a, -1.1511046886444092)
    return a, tl.exp2(tl.fma(p, a, -1.0))


@triton.jit
def bias_gelu_forward(
    x, bias, seed, out, x_stride: tl.int64, rows, C, threshold: tl.uint32, scale,
    BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)  # (rows, columns)
    row = (program // tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first = program % tiles * BLOCK_C
    column = first + tl.arange(0, BLOCK_C)
    mask = (row < rows)[:, None] & (column < C)[None, :]
    y = tl.load(x + row[:, None] * (x_stride * UNIT) + column[None, :], mask=mask, other=0.0).to(tl.float32)
    y += tl.load(bias + column, mask=column < C, other=0.0)[None, :]
    a, tail = _tail(y)
    y = tl.where(y > 0, y, y * 0) - a * tail  # of -inf, NaN: what y * Phi(y) is
    if seed is not None:
        y = tl.where(_kept(seed, threshold, row, first, BLOCK_C, BLOCK), y * scale, 0.0)
    tl.store(out + row[:, None] * C + column[None, :], y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def bias_gelu_backward(
    grad_out, x, bias, seed, grad_x, grad_bias_parts, grad_stride: tl.int64, x_stride: tl.int64,
    rows, C, threshold: tl.uint32, scale, rows_per_program,
    BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Some columns of a run of rows: their gradients, and their share of the bias's."""
    tiles = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    run = (program // tiles).to(tl.int64)
    first = program % tiles * BLOCK_C
    column = first + tl.arange(0, BLOCK_C)
    b = tl.load(bias + column, mask=column < C, other=0.0)[None, :]
    db = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, rows_per_program, BLOCK):
        row = run * rows_per_program + start + tl.arange(0, BLOCK)
        mask = (row < rows)[:, None] & (column < C)[None, :]
        y = tl.load(x + row[:, None] * (x_stride * UNIT) + column[None, :], mask=mask, other=0.0).to(tl.float32) + b
        dy = tl.load(grad_out + row[:, None] * (grad_stride * UNIT) + column[None, :], mask=mask, other=0.0)
        density = 0.3989422804014327 * tl.exp2(y * y * -0.7213475204444817)  # 1 / sqrt(2 pi), log2(e) / 2
        _, tail = _tail(y)
        below = tail - tl.abs(y) * density  # of infinite y, NaN: what y * phi(y) is
        dx = dy.to(tl.float32) * tl.where(y < 0, below, 1 - below)
        if seed is not None:
            dx *= tl.where(_kept(seed, threshold, row, first, BLOCK_C, BLOCK), scale, 0.0)
        db += tl.sum(dx, 0)
        tl.store(grad_x + row[:, None] * C + column[None, :], dx.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(grad_bias_parts + run * C + column, db, mask=column < C)
