# mypy: allow-incomplete-defs, no-check-untyped-defs
"""Absorbed attention for rows that, with all heads' z, are more than a GPU's registers hold; and with dropout.

Columns come in chunks. A first kernel finds each row's mean, deviation and scores, a second one, a program for each
chunk of columns, adds up the weighted rows. Between the two there are H numbers a row instead of C; the tokens are read
twice.

LayerNorm's backward needs of a row's gradient dy_j = Σ_h p_hj dz_h + ds_hj u_h two sums over all columns, which the
first kernel has without dy: dy_j · y_j = Σ_h p_hj dp_hj + ds_hj s_hj, and Σ_c dy_jc from the sums of dz_h and u_h.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hsta_kernels.ops.cross_modal_attention.triton_absorbed import LOG2E, _row_offsets
from hsta_kernels.ops.launch.triton_chain import enter_chain


@triton.jit
def _chunk(base, offsets, valid, first, C: tl.constexpr, CHUNK: tl.constexpr):
    """Pointers to CHUNK columns from `first` on of the rows at `offsets`, (rows, CHUNK), and which of them exist."""
    columns = first + tl.arange(0, CHUNK)
    mask = valid[:, None]
    if C % CHUNK > 0:
        mask = mask & (columns < C)[None, :]
    return base + offsets.to(tl.int64)[:, None] + columns[None, :], mask


@triton.jit
def _load(base, offsets, valid, first, C: tl.constexpr, CHUNK: tl.constexpr):
    pointers, mask = _chunk(base, offsets, valid, first, C, CHUNK)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _centred(tokens, offsets, valid, mean, first, C: tl.constexpr, CHUNK: tl.constexpr):
    """x - mean of a chunk, zero where nothing is."""
    pointers, mask = _chunk(tokens, offsets, valid, first, C, CHUNK)
    x = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, x - mean[:, None], 0.0)


@triton.jit
def _moments(tokens, offsets, valid, C: tl.constexpr, eps, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Mean and 1 / sqrt(var + eps) of the rows at `offsets`."""
    sums = tl.zeros((BLOCK, CHUNK), tl.float32)
    for first in range(0, C, CHUNK):
        sums += _load(tokens, offsets, valid, first, C, CHUNK).to(tl.float32)
    mean = tl.sum(sums, 1) / C
    squares = tl.zeros((BLOCK, CHUNK), tl.float32)
    for first in range(0, C, CHUNK):
        x = _centred(tokens, offsets, valid, mean, first, C, CHUNK)
        squares += x * x
    return mean, 1 / tl.sqrt(tl.sum(squares, 1) / C + eps)


@triton.jit
def draw_factors(factors, seed, threshold, kept_scale, H, N, BLOCK: tl.constexpr, CHAINED: tl.constexpr):
    """What dropout multiplies probabilities with, (B, H, N + 1): reference.py's mask. A kernel of its own: those that
    have the probabilities have no registers left for it."""
    enter_chain(CHAINED)
    blocks = tl.cdiv(N + 1, 4 * BLOCK)
    program = tl.program_id(0).to(tl.int64)  # (sample, head, block of rows)
    first = (program % blocks).to(tl.int32) * BLOCK
    zero = tl.zeros((BLOCK,), tl.int32)
    head, sample = (program // blocks % H).to(tl.int32), (program // blocks // H).to(tl.int32)
    a, b, c, d = tl.philox(tl.load(seed), first + tl.arange(0, BLOCK), head + zero, zero, sample + zero)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (4 * BLOCK,))  # those of a row after the other
    factor = tl.where(words >= tl.full((), threshold, tl.uint32), kept_scale, 0.0)
    row = 4 * first + tl.arange(0, 4 * BLOCK)
    tl.store(factors + program // blocks * (N + 1) + row, factor, mask=row <= N)


@triton.jit
def row_scores(
    u, tokens, scores, rows,
    query_distance: tl.int64, query_stride: tl.int64, sample_stride: tl.int64, token_stride: tl.int64, N, H, eps,
    C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Of a block of rows: scores (B, H, N + 1), exponents of 2, and rows (B, N + 1, 2), mean and 1 / deviation."""
    enter_chain(CHAINED)
    blocks = tl.cdiv(N + 1, BLOCK)
    program = tl.program_id(0).to(tl.int64)  # (sample, block)
    sample, row = program // blocks, (program % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    query_distance += sample * (query_stride - sample_stride)
    tokens += sample * sample_stride * UNIT
    dtype = tokens.dtype.element_ty
    heads = tl.arange(0, BLOCK_H)
    u += sample * H * C
    offsets = _row_offsets(row, query_distance, token_stride, UNIT)
    mean, rstd = _moments(tokens, offsets, row <= N, C, eps, BLOCK, CHUNK)
    s = tl.zeros((BLOCK_H, BLOCK), tl.float32)
    for first in range(0, C, CHUNK):
        y = (_centred(tokens, offsets, row <= N, mean, first, C, CHUNK) * rstd[:, None]).to(dtype)
        u_chunk = _load(u, heads * C, heads < H, first, C, CHUNK).to(dtype)
        s = tl.dot(u_chunk, tl.trans(y), s, input_precision=PRECISION)
    place = (sample * H + heads)[:, None] * (N + 1) + row[None, :]
    tl.store(scores + place, s * LOG2E, mask=(heads < H)[:, None] & (row <= N)[None, :])
    place = (sample * (N + 1) + row) * 2
    tl.store(rows + place, mean, mask=row <= N)
    tl.store(rows + place + 1, rstd, mask=row <= N)


@triton.jit
def absorbed_columns(
    tokens, scores, rows, factors, z_parts, stat_parts,
    query_distance: tl.int64, query_stride: tl.int64, sample_stride: tl.int64, token_stride: tl.int64,
    N, H, splits, rows_per_split,
    C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """A chunk of z of one run of rows, and the run's softmax statistics."""
    enter_chain(CHAINED)
    chunks: tl.constexpr = (C + CHUNK - 1) // CHUNK
    program = tl.program_id(0).to(tl.int64)  # (sample, split, chunk): a run's rows stay in the cache
    column, part, sample = (program % chunks).to(tl.int32) * CHUNK, program // chunks, program // chunks // splits
    first = (part % splits).to(tl.int32) * rows_per_split
    last = tl.minimum(first + rows_per_split, N + 1)
    query_distance += sample * (query_stride - sample_stride)
    tokens += sample * sample_stride * UNIT
    dtype = tokens.dtype.element_ty
    heads = tl.arange(0, BLOCK_H)
    of_head = (sample * H + heads)[:, None] * (N + 1)
    m = tl.full((BLOCK_H,), -float("inf"), tl.float32)
    for start in range(first, last, BLOCK):
        row = start + tl.arange(0, BLOCK)
        valid = (heads < H)[:, None] & (row < last)[None, :]
        m = tl.maximum(m, tl.max(tl.load(scores + of_head + row[None, :], mask=valid, other=-float("inf")), 1))
    m = tl.where(heads < H, m, 0.0)
    l = tl.zeros((BLOCK_H,), tl.float32)
    z = tl.zeros((BLOCK_H, CHUNK), tl.float32)
    for start in range(first, last, BLOCK):
        row = start + tl.arange(0, BLOCK)
        valid = (heads < H)[:, None] & (row < last)[None, :]
        s = tl.load(scores + of_head + row[None, :], mask=valid, other=-float("inf"))
        p = tl.exp2(s - m[:, None])
        l += tl.sum(p, 1)
        if factors is not None:
            p *= tl.load(factors + of_head + row[None, :], mask=valid, other=0.0)
        of_row = rows + (sample * (N + 1) + row) * 2
        mean = tl.load(of_row, mask=row < last, other=0.0)
        rstd = tl.load(of_row + 1, mask=row < last, other=0.0)
        offsets = _row_offsets(row, query_distance, token_stride, UNIT)
        y = _centred(tokens, offsets, row < last, mean, column, C, CHUNK) * rstd[:, None]
        z = tl.dot(p.to(dtype), y.to(dtype), z, input_precision=PRECISION)
    pointers, mask = _chunk(z_parts + part * H * C, heads * C, heads < H, column, C, CHUNK)
    total = tl.where((heads < H) & (splits == 1), l, 1.0)  # else merge_z divides
    tl.store(pointers, z / total[:, None], mask=mask)
    if column == 0:
        tl.store(stat_parts + (part * H + heads) * 2, m, mask=heads < H)
        tl.store(stat_parts + (part * H + heads) * 2 + 1, l, mask=heads < H)


@triton.jit
def row_gradients(
    grad_z, u, tokens, z, stats, weights, rows, factors, grad_s, sum_of_weights,
    query_distance: tl.int64, query_stride: tl.int64, sample_stride: tl.int64, token_stride: tl.int64, N, H, eps,
    C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Of a block of rows: weights (B, 2, H, N + 1), p after dropout and ds, and rows (B, N + 1, 4), what y and dx need
    of a row."""
    enter_chain(CHAINED)
    blocks = tl.cdiv(N + 1, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    sample, row = program // blocks, (program % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    query_distance += sample * (query_stride - sample_stride)
    tokens += sample * sample_stride * UNIT
    dtype = tokens.dtype.element_ty
    heads = tl.arange(0, BLOCK_H)
    of_sample = sample * H * C
    offsets = _row_offsets(row, query_distance, token_stride, UNIT)
    mean, rstd = _moments(tokens, offsets, row <= N, C, eps, BLOCK, CHUNK)
    s = tl.zeros((BLOCK_H, BLOCK), tl.float32)
    dp = tl.zeros((BLOCK_H, BLOCK), tl.float32)
    delta = tl.zeros((BLOCK_H,), tl.float32)
    sum_u = tl.zeros((BLOCK_H,), tl.float32)
    sum_dz = tl.zeros((BLOCK_H,), tl.float32)
    for first in range(0, C, CHUNK):
        y = (_centred(tokens, offsets, row <= N, mean, first, C, CHUNK) * rstd[:, None]).to(dtype)
        u_chunk = _load(u + of_sample, heads * C, heads < H, first, C, CHUNK)
        dz_chunk = _load(grad_z + of_sample, heads * C, heads < H, first, C, CHUNK)
        delta += tl.sum(dz_chunk * _load(z + of_sample, heads * C, heads < H, first, C, CHUNK), 1)
        sum_u += tl.sum(u_chunk, 1)
        sum_dz += tl.sum(dz_chunk, 1)
        s = tl.dot(u_chunk.to(dtype), tl.trans(y), s, input_precision=PRECISION)
        dp = tl.dot(dz_chunk.to(dtype), tl.trans(y), dp, input_precision=PRECISION)
    of_head = sample * H + heads
    m = tl.load(stats + of_head * 2, mask=heads < H, other=0.0)
    inverse_l = tl.div_rn(1.0, tl.load(stats + of_head * 2 + 1, mask=heads < H, other=1.0))
    valid = (heads < H)[:, None] & (row <= N)[None, :]
    p = tl.where(valid, tl.exp2(s * LOG2E - m[:, None]) * inverse_l[:, None], 0.0)
    weight, grad_p = p, dp
    if factors is not None:
        of_s = tl.load(grad_s + of_head, mask=heads < H, other=0.0)
        delta += of_s * tl.load(sum_of_weights + of_head, mask=heads < H, other=0.0)
        factor = tl.load(factors + of_head[:, None] * (N + 1) + row[None, :], mask=valid, other=0.0)
        weight, grad_p = p * factor, (dp + of_s[:, None]) * factor
    ds = p * (grad_p - delta[:, None])
    if factors is not None:  # the probability of a single row is 1, whatever its score
        ds = tl.where(N > 0, ds, 0.0)
    place = (of_head + sample * H)[:, None] * (N + 1) + row[None, :]
    tl.store(weights + place, weight, mask=valid)
    tl.store(weights + H * (N + 1) + place, ds, mask=valid)
    place = (sample * (N + 1) + row) * 4
    tl.store(rows + place, mean, mask=row <= N)
    tl.store(rows + place + 1, rstd, mask=row <= N)
    tl.store(rows + place + 2, tl.sum(weight * dp + ds * s, 0) / C, mask=row <= N)
    tl.store(rows + place + 3, tl.sum(weight * sum_dz[:, None] + ds * sum_u[:, None], 0) / C, mask=row <= N)


@triton.jit
def absorbed_columns_backward(
    grad_z, u, tokens, weights, rows, grad_u_parts, grad_tokens,
    grad_distance: tl.int64, width: tl.int64,
    query_distance: tl.int64, query_stride: tl.int64, sample_stride: tl.int64, token_stride: tl.int64,
    N, H, splits, rows_per_split,
    C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """A chunk of the gradients of one run of rows, and the run's share of that chunk of u's."""
    enter_chain(CHAINED)
    chunks: tl.constexpr = (C + CHUNK - 1) // CHUNK
    program = tl.program_id(0).to(tl.int64)
    column, part, sample = (program % chunks).to(tl.int32) * CHUNK, program // chunks, program // chunks // splits
    first = (part % splits).to(tl.int32) * rows_per_split
    last = tl.minimum(first + rows_per_split, N + 1)
    query_distance += sample * (query_stride - sample_stride)
    tokens += sample * sample_stride * UNIT
    grad_distance += sample * (width - N * width)
    grad_tokens += sample * N * width * UNIT
    dtype = tokens.dtype.element_ty
    heads = tl.arange(0, BLOCK_H)
    u_chunk = _load(u + sample * H * C, heads * C, heads < H, column, C, CHUNK).to(dtype)
    dz_chunk = _load(grad_z + sample * H * C, heads * C, heads < H, column, C, CHUNK).to(dtype)
    of_head = (sample * 2 * H + heads)[:, None] * (N + 1)
    du = tl.zeros((BLOCK_H, CHUNK), tl.float32)
    for start in range(first, last, BLOCK):
        row = start + tl.arange(0, BLOCK)
        valid = (heads < H)[:, None] & (row < last)[None, :]
        p = tl.load(weights + of_head + row[None, :], mask=valid, other=0.0).to(dtype)
        ds = tl.load(weights + H * (N + 1) + of_head + row[None, :], mask=valid, other=0.0).to(dtype)
        of_row = rows + (sample * (N + 1) + row) * 4
        mean = tl.load(of_row, mask=row < last, other=0.0)
        rstd = tl.load(of_row + 1, mask=row < last, other=0.0)
        along_y = tl.load(of_row + 2, mask=row < last, other=0.0)
        along_one = tl.load(of_row + 3, mask=row < last, other=0.0)
        offsets = _row_offsets(row, query_distance, token_stride, UNIT)
        y = (_centred(tokens, offsets, row < last, mean, column, C, CHUNK) * rstd[:, None]).to(dtype)
        du = tl.dot(ds, y, du, input_precision=PRECISION)
        dy = tl.dot(tl.trans(p), dz_chunk, input_precision=PRECISION)
        dy = tl.dot(tl.trans(ds), u_chunk, dy, input_precision=PRECISION)
        dx = (dy - along_one[:, None] - y.to(tl.float32) * along_y[:, None]) * rstd[:, None]
        offsets = _row_offsets(row, grad_distance, width, UNIT)
        pointers, mask = _chunk(grad_tokens, offsets, row < last, column, C, CHUNK)
        tl.store(pointers, dx.to(dtype), mask=mask)
    pointers, mask = _chunk(grad_u_parts + part * H * C, heads * C, heads < H, column, C, CHUNK)
    tl.store(pointers, du, mask=mask)
