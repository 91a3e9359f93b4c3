# mypy: allow-incomplete-defs, no-check-untyped-defs
"""add_layer_norm in Triton: matrices of rows, a few whole rows at a time, each read once and written once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _offsets(row, rows, row_stride, C, BLOCK_C: tl.constexpr):
    """Where the elements of the rows `row` lie, (rows, BLOCK_C), and which of them exist."""
    columns = tl.arange(0, BLOCK_C)
    mask = (row < rows)[:, None] & (columns < C)[None, :]
    return row.to(tl.int64)[:, None] * row_stride + columns[None, :], mask


@triton.jit
def _normalize(x, mask, C, eps):
    """(x - mean) / sqrt(var + eps) and 1 / sqrt(var + eps) of the rows of `x`, which is zero where not `mask`."""
    centred = tl.where(mask, x - (tl.sum(x, 1) / C)[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def add_layer_norm_forward(
    residual, x, weight, bias, total, norm, residual_stride: tl.int64, x_stride: tl.int64, rows, C, eps,
    BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_C)
    offsets, mask = _offsets(row, rows, residual_stride * UNIT, C, BLOCK_C)
    sum_rows = tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    offsets, mask = _offsets(row, rows, x_stride * UNIT, C, BLOCK_C)
    sum_rows += tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    sum_rows = sum_rows.to(total.dtype.element_ty)
    y, _ = _normalize(sum_rows.to(tl.float32), mask, C, eps)
    w = tl.load(weight + columns, mask=columns < C, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)
    offsets, mask = _offsets(row, rows, C, C, BLOCK_C)
    tl.store(total + offsets, sum_rows, mask=mask)
    tl.store(norm + offsets, (y * w[None, :] + b[None, :]).to(norm.dtype.element_ty), mask=mask)


@triton.jit
def add_layer_norm_backward(
    grad_norm, grad_sum, total, weight, bias, grad_residual, grad_x, norm, grad_weight_parts, grad_bias_parts,
    norm_stride: tl.int64, sum_stride: tl.int64, rows, C, eps, rows_per_program,
    BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Gradients of a run of rows, `grad_x` and `norm` where given, and their share of the weight's and the bias's."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK_C)
    w = tl.load(weight + columns, mask=columns < C, other=0.0).to(tl.float32)
    dw = tl.zeros((BLOCK_C,), tl.float32)
    db = tl.zeros((BLOCK_C,), tl.float32)
    first = program * rows_per_program
    for start in range(first, tl.minimum(first + rows_per_program, rows), BLOCK):
        row = start + tl.arange(0, BLOCK)
        offsets, mask = _offsets(row, rows, C, C, BLOCK_C)
        norm_offsets, _ = _offsets(row, rows, norm_stride * UNIT, C, BLOCK_C)
        sum_offsets, _ = _offsets(row, rows, sum_stride * UNIT, C, BLOCK_C)
        # All loads come before the first sum over a row: behind its barrier they would be waited for once more.
        x = tl.load(total + offsets, mask=mask, other=0.0)
        dnorm = tl.load(grad_norm + norm_offsets, mask=mask, other=0.0)
        dsum = tl.load(grad_sum + sum_offsets, mask=mask, other=0.0)
        y, rstd = _normalize(x.to(tl.float32), mask, C, eps)
        dnorm, dsum = dnorm.to(tl.float32), dsum.to(tl.float32)
        dw += tl.sum(dnorm * y, 0)
        db += tl.sum(dnorm, 0)
        dy = dnorm * w[None, :]
        along_y, along_one = tl.sum(dy * y, 1) / C, tl.sum(dy, 1) / C
        dx = (dy - along_one[:, None] - y * along_y[:, None]) * rstd[:, None] + dsum
        tl.store(grad_residual + offsets, dx.to(grad_residual.dtype.element_ty), mask=mask)
        if grad_x is not None:
            tl.store(grad_x + offsets, dx.to(grad_x.dtype.element_ty), mask=mask)
        if norm is not None:
            b = tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)
            tl.store(norm + offsets, (y * w[None, :] + b[None, :]).to(norm.dtype.element_ty), mask=mask)
    parts = program.to(tl.int64) * C + columns
    tl.store(grad_weight_parts + parts, dw, mask=columns < C)
    tl.store(grad_bias_parts + parts, db, mask=columns < C)
