"""Attention over time in Triton: sequences of a few frames each, many of them in one tile.

A tile stacks the rows of PACK neighbouring positions, T frames each, and the prefix tokens: one matrix product gives
the scores of all of them with all of them, of which each query keeps those of its own position and of the prefix. What
is thrown away costs matrix-unit time that this memory-bound work has to spare; whole rows of the softmax are on chip,
so the forward and the backward pass read each tensor once and write each result once.

Softmax works in base 2: a score is scale·log2(e)·q·k, an exponent of 2. The backward pass computes it by the same
operations as the forward pass, to the same bits, so that a probability of one is recovered as exactly one.
"""

# mypy: allow-incomplete-defs, no-check-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from hsta_kernels.ops.launch.triton_chain import enter_chain
from hsta_kernels.ops.space_time_attention.triton_tile import (
    LOWEST,
    diagonal,
    divide,
    kept,
    load_tile,
    scores,
    store_tile,
)

PREFIX = tl.constexpr(-1)  # the position of a prefix token
PADDING = tl.constexpr(-2)  # the position of a row that is not there


@triton.jit
def _rows(split, N, group_step, member_step, T: tl.constexpr, P: tl.constexpr, PACK: tl.constexpr, ROWS: tl.constexpr):
    """(position, token) of each row of a tile: PACK·T patches, then the P prefix tokens, then padding."""
    rows = tl.arange(0, ROWS)
    position = split * PACK + rows // T
    token = P + rows % T * member_step + position * group_step
    position = tl.where((rows < PACK * T) & (position < N), position, PADDING)
    is_prefix = (rows >= PACK * T) & (rows < PACK * T + P)
    return tl.where(is_prefix, PREFIX, position), tl.where(is_prefix, rows - PACK * T, token)


@triton.jit
def _visible(position, split):
    """Who sees whom in a tile, (queries, keys). The prefix sees itself in split 0 only, so as to count once.

    Padding sees padding, which keeps NaN out of rows that nobody reads.
    """
    query, key = position[:, None], position[None, :]
    with_prefix = ((query == PREFIX) & (key >= 0)) | ((query >= 0) & (key == PREFIX))
    return with_prefix | ((query == key) & ((query != PREFIX) | (split == 0)))


@triton.jit
def _kept(
    seed, threshold, position, sequence, T: tl.constexpr, P: tl.constexpr, PACK: tl.constexpr, ROWS: tl.constexpr
):
    """What dropout keeps of a tile, (queries, keys); anything where one does not see the other."""
    rows = tl.arange(0, ROWS)
    number = tl.where(position == PREFIX, T + rows - PACK * T, rows % T)  # in a group
    group = tl.maximum(position, 0)  # among themselves prefix tokens are in group 0
    KEYS: tl.constexpr = 4 if T + P <= 4 else 8 if T + P <= 8 else 16 if T + P <= 16 else 32 if T + P <= 32 else ROWS
    mask = kept(seed, threshold, number, 0, number, group[:, None], sequence, KEYS) | (position == PREFIX)[:, None]
    threshold = tl.full((), threshold, tl.uint32)
    key = number[:, None]
    for token in range(P):  # whose row has keys of all groups
        a, b, c, d = tl.philox(seed, key // 4, T + token, group[:, None], sequence.to(tl.int32))
        word = tl.where(key % 2 == 0, tl.where(key % 4 == 0, a, c), tl.where(key % 4 == 1, b, d))
        word = tl.sum(word, 1)  # of one number; else each thread draws those of all its keys, and all warps the same
        least = tl.where(rows == PACK * T + token, threshold, 0)
        mask &= word[None, :] >= least[:, None]
    return mask


@triton.jit
def time_forward(
    q_ptr, k_ptr, v_ptr, out, stats, partial_values, partial_stats,
    sample_stride: tl.int64, token_stride: tl.int64, head_stride: tl.int64,
    N, group_step, member_step, L, H, scale, scale_low, seed, threshold, kept_scale,
    T: tl.constexpr, P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    PACK: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    enter_chain(CHAINED)
    splits = tl.cdiv(N, PACK)
    program = tl.program_id(0)  # (sample, split, head): heads lie side by side in memory
    head, split, sample = program % H, program // H % splits, (program // H // splits).to(tl.int64)
    position, token = _rows(split, N, group_step, member_step, T, P, PACK, ROWS)
    valid = position != PADDING
    offset = (sample * sample_stride + head * head_stride) * UNIT
    q = load_tile(q_ptr + offset, token, valid, token_stride * UNIT, D, BLOCK_D, True)
    k = load_tile(k_ptr + offset, token, valid, token_stride * UNIT, D, BLOCK_D, True)
    v = load_tile(v_ptr + offset, token, valid, token_stride * UNIT, D, BLOCK_D, True)

    s = scores(q, k, scale, scale_low, PRECISION)
    s = tl.where(_visible(position, split), s, -float("inf"))
    m = tl.maximum(tl.max(s, 1), LOWEST)
    p = tl.exp2(s - m[:, None])
    l = tl.sum(p, 1)
    if seed is not None:
        mask = _kept(tl.load(seed), threshold, position, sample * H + head, T, P, PACK, ROWS)
        p = tl.where(mask, p * kept_scale, 0.0)
    values = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)

    o = divide(values, l[:, None], q.dtype)
    store_tile(o, out + (sample * L * H + head) * D, token, position >= 0, H * D, D, BLOCK_D, True)
    row_stats = stats + ((sample * H + head) * L + token) * 2
    tl.store(row_stats, m, mask=position >= 0)
    tl.store(row_stats + 1, tl.div_rn(1.0, l), mask=position >= 0)
    if P > 0:
        row = ((sample * H + head) * P + token) * splits + split
        store_tile(values, partial_values, row, position == PREFIX, D, D, BLOCK_D, True)
        tl.store(partial_stats + row * 2, m, mask=position == PREFIX)
        tl.store(partial_stats + row * 2 + 1, l, mask=position == PREFIX)


@triton.jit
def time_backward(
    grad_out, q_ptr, k_ptr, v_ptr, out, stats, dq_ptr, dk_ptr, dv_ptr, partial_grads,
    grad_sample_stride: tl.int64, grad_token_stride: tl.int64, grad_head_stride: tl.int64,
    sample_stride: tl.int64, token_stride: tl.int64, head_stride: tl.int64,
    N, group_step, member_step, L, H, scale, scale_low, grad_scale, seed, threshold, kept_scale,
    T: tl.constexpr, P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    PACK: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr, GRAD_UNIT: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    enter_chain(CHAINED)
    splits = tl.cdiv(N, PACK)
    program = tl.program_id(0)
    head, split, sample = program % H, program // H % splits, (program // H // splits).to(tl.int64)
    position, token = _rows(split, N, group_step, member_step, T, P, PACK, ROWS)
    valid = position != PADDING
    offset = (sample * sample_stride + head * head_stride) * UNIT
    q = load_tile(q_ptr + offset, token, valid, token_stride * UNIT, D, BLOCK_D, True)
    k = load_tile(k_ptr + offset, token, valid, token_stride * UNIT, D, BLOCK_D, True)
    v = load_tile(v_ptr + offset, token, valid, token_stride * UNIT, D, BLOCK_D, True)
    grad_base = grad_out + (sample * grad_sample_stride + head * grad_head_stride) * GRAD_UNIT
    do = load_tile(grad_base, token, valid, grad_token_stride * GRAD_UNIT, D, BLOCK_D, True)
    row_stats = stats + ((sample * H + head) * L + token) * 2
    m = tl.load(row_stats, mask=valid, other=0.0)
    inverse_l = tl.load(row_stats + 1, mask=valid, other=1.0)
    if P > 0:
        o = load_tile(out + (sample * L * H + head) * D, token, position == PREFIX, H * D, D, BLOCK_D, True)

    s = scores(q, k, scale, scale_low, PRECISION)
    p = tl.where(_visible(position, split), tl.exp2(s - m[:, None]) * inverse_l[:, None], 0.0)
    weights = p
    if seed is not None:
        mask = _kept(tl.load(seed), threshold, position, sample * H + head, T, P, PACK, ROWS)
        weights = tl.where(mask, p * kept_scale, 0.0)
    dv = tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision=PRECISION)
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    if seed is not None:
        dp = tl.where(mask, dp * kept_scale, 0.0)
    # A patch has its whole row here. A prefix query's row is spread over the splits: δ = Σ p·dp = dO·O, by the same
    # kind of product as dp, so that with a one-hot p they cancel exactly.
    delta = tl.sum(p * dp, 1)
    if P > 0:
        of_prefix = diagonal(tl.dot(do, tl.trans(o), input_precision=PRECISION), ROWS)
        delta = tl.where(position == PREFIX, of_prefix, delta)
    ds = (p * (dp - delta[:, None])).to(q.dtype)
    dq = tl.dot(ds, k, input_precision=PRECISION) * grad_scale
    dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION) * grad_scale

    offset = (sample * L * PARTS * H + head) * D
    store_tile(dq, dq_ptr + offset, token, position >= 0, PARTS * H * D, D, BLOCK_D, True)
    store_tile(dk, dk_ptr + offset, token, position >= 0, PARTS * H * D, D, BLOCK_D, True)
    store_tile(dv, dv_ptr + offset, token, position >= 0, PARTS * H * D, D, BLOCK_D, True)
    if P > 0:
        part = H * P * splits
        row = sample * 3 * part + (head * P + token) * splits + split
        store_tile(dq, partial_grads, row, position == PREFIX, D, D, BLOCK_D, True)
        store_tile(dk, partial_grads, row + part, position == PREFIX, D, D, BLOCK_D, True)
        store_tile(dv, partial_grads, row + 2 * part, position == PREFIX, D, D, BLOCK_D, True)
