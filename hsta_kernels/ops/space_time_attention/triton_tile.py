"""What the Triton kernels of space-time attention share: tiles of token rows, and the merging of the prefix rows.

A tile holds some rows (tokens) of one head. Prefix tokens belong to every group of patches. As keys they are simply
there; as queries they see all groups, so every group leaves a partial result for them, and the kernels at the end of
this file merge the partial results in a fixed order. Partial results are float32, laid out (B, H, P, splits, ...).
"""

# mypy: allow-incomplete-defs, no-check-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from hsta_kernels.ops.launch.triton_chain import enter_chain

# No maximum of scores is below it: of scores of -inf, the weights 2^(s - m) are then 0, and not NaN.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def load_tile(base, tokens, valid, token_stride, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """The rows `tokens` of the matrix at `base`, (rows, BLOCK_D); zero in columns past D and, if MASKED, where not
    `valid`."""
    columns = tl.arange(0, BLOCK_D)
    pointers = base + tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
    if MASKED:
        return tl.load(pointers, mask=valid[:, None] & (columns < D)[None, :], other=0.0)
    elif D < BLOCK_D:
        return tl.load(pointers, mask=(columns < D)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def store_tile(tile, base, rows, valid, row_stride, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Writes `tile` to the rows `rows` of the matrix at `base`, in its dtype; the masks are those of `load_tile`."""
    columns = tl.arange(0, BLOCK_D)
    pointers = base + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    tile = tile.to(base.dtype.element_ty)
    if MASKED:
        tl.store(pointers, tile, mask=valid[:, None] & (columns < D)[None, :])
    elif D < BLOCK_D:
        tl.store(pointers, tile, mask=(columns < D)[None, :])
    else:
        tl.store(pointers, tile)


@triton.jit
def scores(a, b, scale, scale_low, PRECISION: tl.constexpr):
    """a · bᵀ times the factor scale + scale_low: an error of the factor would change all scores of a row alike."""
    s = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    return s * scale + s * scale_low if a.dtype == tl.float32 else s * scale


@triton.jit
def divide(x, l, dtype: tl.constexpr):
    """x / l with one l for a row or column; a reciprocal rounded to float32 is good enough for 16-bit results."""
    return x / l if dtype == tl.float32 else x * tl.div_rn(1.0, l)


@triton.jit
def diagonal(square, ROWS: tl.constexpr):
    """The diagonal of a (ROWS, ROWS) tile."""
    rows = tl.arange(0, ROWS)
    return tl.sum(tl.where(rows[:, None] == rows[None, :], square, 0.0), 1)


@triton.jit
def kept(seed, threshold, query, first, column, group, sequence, KEYS: tl.constexpr):
    """Whether dropout keeps what row query[i] of a group sees of row first + column[j], as (i, j).

    The mask is that of reference.py. One block of Philox serves four keys. A query's bits of 32 keys make one number:
    it is these numbers that go to the threads that hold the probabilities, and not the tile of all bits.

    Args:
        seed: its value.
        threshold: words below it drop; its 32 bits.
        query, column: numbers, 1-D.
        first: a multiple of four.
        group, sequence: scalars, or of shape (queries, 1).
        KEYS: all columns are below it; a power of 2, at least 4.
    """
    CHUNK: tl.constexpr = KEYS if KEYS < 32 else 32
    block = tl.arange(0, CHUNK // 4)[None, :]
    threshold = tl.full((), threshold, tl.uint32)
    bits = tl.zeros((query.shape[0], column.shape[0]), tl.uint32)
    for start in tl.static_range(0, KEYS, CHUNK):
        a, b, c, d = tl.philox(seed, (first + start) // 4 + block, query[:, None], group, sequence.to(tl.int32))
        four = (a >= threshold).to(tl.uint32) | ((b >= threshold).to(tl.uint32) << 1)
        four |= ((c >= threshold).to(tl.uint32) << 2) | ((d >= threshold).to(tl.uint32) << 3)
        all_of_them = tl.sum(four << (4 * block).to(tl.uint32), 1)
        bits = tl.where((column // CHUNK * CHUNK == start)[None, :], all_of_them[:, None], bits)
    return (bits >> (column % CHUNK).to(tl.uint32)[None, :]) % 2 != 0


@triton.jit
def merge_prefix(
    partial_values, partial_stats, out, stats, splits, L, H, P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One prefix query of one head: softmax over all tokens from its partial softmaxes over the splits.

    A partial result is m = max s, l = Σ 2^(s - m) and Σ 2^(s - m) v; with M the largest m, each is worth 2^(m - M).
    """
    enter_chain(CHAINED)
    program = tl.program_id(0).to(tl.int64)  # (sample, head, prefix token)
    token, head, sample = program % P, program // P % H, program // P // H
    columns = tl.arange(0, BLOCK_D)
    top = tl.full((), -float("inf"), tl.float32)
    for start in range(0, splits, BLOCK):
        split = start + tl.arange(0, BLOCK)
        pointers = partial_stats + (program * splits + split) * 2
        top = tl.maximum(top, tl.max(tl.load(pointers, mask=split < splits, other=-float("inf")), 0))
    total = tl.zeros((), tl.float32)
    values = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, splits, BLOCK):
        split = start + tl.arange(0, BLOCK)
        pointers = partial_stats + (program * splits + split) * 2
        weight = tl.exp2(tl.load(pointers, mask=split < splits, other=-float("inf")) - top)
        total += tl.sum(weight * tl.load(pointers + 1, mask=split < splits, other=0.0), 0)
        tile = load_tile(partial_values, program * splits + split, split < splits, D, D, BLOCK_D, True)
        values += tl.sum(weight[:, None] * tile, 0)
    row = (sample * L + token) * H + head
    tl.store(out + row * D + columns, (values / total).to(out.dtype.element_ty), mask=columns < D)
    row = (sample * H + head) * L + token
    tl.store(stats + row * 2, top)
    tl.store(stats + row * 2 + 1, tl.div_rn(1.0, total))


@triton.jit
def _sum_over_splits(partial, row, splits, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, splits, BLOCK):
        split = start + tl.arange(0, BLOCK)
        total += tl.sum(load_tile(partial, row * splits + split, split < splits, D, D, BLOCK_D, True), 0)
    return total


@triton.jit
def mean_prefix(
    partial_values, out, splits, L, H, P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One prefix query of one head whose softmaxes over the splits are its own: the mean of their outputs."""
    enter_chain(CHAINED)
    program = tl.program_id(0).to(tl.int64)  # (sample, head, prefix token)
    token, head, sample = program % P, program // P % H, program // P // H
    columns = tl.arange(0, BLOCK_D)
    mean = _sum_over_splits(partial_values, program, splits, D, BLOCK_D, BLOCK) / splits
    row = (sample * L + token) * H + head
    tl.store(out + row * D + columns, mean.to(out.dtype.element_ty), mask=columns < D)


@triton.jit
def sum_prefix(
    partial_grads, dq_ptr, dk_ptr, dv_ptr, splits, L, H,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """The gradient of one prefix token's query, key or value in one head: the sum of every split's share."""
    enter_chain(CHAINED)
    program = tl.program_id(0).to(tl.int64)  # (sample, part, head, prefix token)
    token, head, part, sample = program % P, program // P % H, program // P // H % 3, program // P // H // 3
    columns = tl.arange(0, BLOCK_D)
    total = _sum_over_splits(partial_grads, program, splits, D, BLOCK_D, BLOCK).to(dq_ptr.dtype.element_ty)
    offset = ((sample * L + token) * PARTS * H + head) * D + columns
    if part == 0:
        tl.store(dq_ptr + offset, total, mask=columns < D)
    elif part == 1:
        tl.store(dk_ptr + offset, total, mask=columns < D)
    else:
        tl.store(dv_ptr + offset, total, mask=columns < D)
