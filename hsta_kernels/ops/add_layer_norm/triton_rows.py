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
def _over_row(x):
    """The sums over the rows of a tile of chunks, (1, rows, 1)."""
    return tl.sum(tl.sum(x, 0), 1)[None, :, None]


@triton.jit
def add_layer_norm_backward(
    grad_norm, grad_sum, total, weight, bias, grad_residual, grad_x, norm, grad_weight_parts, grad_bias_parts,
    norm_stride: tl.int64, sum_stride: tl.int64, rows, eps, rows_per_program,
    C: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, STAGES: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Gradients of a run of rows, `grad_x` and `norm` where given, and their share of the weight's and the bias's.

    A tile is (chunks of a row, rows, columns of a chunk), all of one layout, weights and sums over rows as well: a
    chunk is as wide as the warps of a row load at once, so that a thread keeps its columns from row to row and a warp
    waits for others at most within a row. Chunks are a power of 2. What lies past column C is a constant zero by
    `where`, and the compiler, which knows C, leaves it out.
    """
    program = tl.program_id(0)
    chunks, columns_of_chunk = tl.arange(0, CHUNKS) * CHUNK, tl.arange(0, CHUNK)
    columns = chunks[:, None, None] + columns_of_chunk[None, None, :] + tl.zeros((1, BLOCK, 1), tl.int32)
    valid = columns < C
    w = tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)
    dw = tl.zeros((CHUNKS, BLOCK, CHUNK), tl.float32)
    db = tl.zeros((CHUNKS, BLOCK, CHUNK), tl.float32)
    first = program * rows_per_program
    for start in tl.range(first, tl.minimum(first + rows_per_program, rows), BLOCK, num_stages=STAGES):
        row = (start + tl.arange(0, BLOCK))[None, :, None]
        exists = row < rows
        mask = exists & valid
        row = row.to(tl.int64)
        x = tl.load(total + (row * C + columns), mask=mask, other=0.0).to(tl.float32)
        dnorm = tl.load(grad_norm + (row * (norm_stride * UNIT) + columns), mask=mask, other=0.0).to(tl.float32)
        dsum = tl.load(grad_sum + (row * (sum_stride * UNIT) + columns), mask=mask, other=0.0).to(tl.float32)
        x, dnorm = tl.where(valid, x, 0.0), tl.where(valid, dnorm, 0.0)
        y = tl.where(valid, x - _over_row(x) / C, 0.0)
        rstd = tl.where(exists, 1 / tl.sqrt(_over_row(y * y) / C + eps), 0.0)  # not infinite where there is no row
        y *= rstd
        dw = tl.where(valid, tl.fma(dnorm, y, dw), 0.0)
        db = tl.where(valid, db + dnorm, 0.0)
        dy = dnorm * w
        along_y, along_one = _over_row(dy * y) / C, _over_row(dy) / C
        dx = tl.fma(tl.fma(y, -along_y, dy - along_one), rstd, dsum)
        tl.store(grad_residual + (row * C + columns), dx.to(grad_residual.dtype.element_ty), mask=mask)
        if grad_x is not None:
            tl.store(grad_x + (row * C + columns), dx.to(grad_x.dtype.element_ty), mask=mask)
        if norm is not None:  # noqa: SIM102
            # Always so, but in a branch the bias is not loaded ahead, which takes shared memory for each turn.
            if start < rows:
                b = tl.load(bias + columns, mask=valid, other=0.0).to(tl.float32)
                tl.store(norm + (row * C + columns), (y * w + b).to(norm.dtype.element_ty), mask=mask)
    columns = chunks[:, None] + columns_of_chunk[None, :]
    parts = program.to(tl.int64) * C + columns
    tl.store(grad_weight_parts + parts, tl.sum(dw, 1), mask=columns < C)
    tl.store(grad_bias_parts + parts, tl.sum(db, 1), mask=columns < C)
