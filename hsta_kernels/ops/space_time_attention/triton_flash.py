"""Attention over space and over all tokens in Triton: flash attention (arXiv 2307.08691) over groups with a prefix.

Patches fall into `groups` groups of G members; member j of group g is token P + g·group_step + j·member_step. The rows
of a group are its G patches, then the P prefix tokens, as queries and as keys alike. Rows come in tiles: full tiles of
patches, which need no mask, then smaller tail tiles with what is left of the patches and with the prefix. Queries of
a short group are all tail (BLOCK_M = 0): one large tile with masks is done sooner than a few small ones. `joint`
attention is one group of all tokens without a prefix.

A prefix query sees, in each group, the group's patches, and in group 0 the prefix as well; a later kernel merges what
it found. With MEAN it sees the prefix in every group, has a softmax in each, and their results are averaged.

Scores are exponents of 2, computed by the same operations in the forward and in the backward pass.
"""

# mypy: allow-incomplete-defs, no-check-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from hsta_kernels.ops.launch.triton_chain import enter_chain
from hsta_kernels.ops.space_time_attention.triton_tile import LOWEST, divide, kept, load_tile, scores, store_tile


@triton.jit
def _token(row, group, G, group_step, member_step, P: tl.constexpr, TAIL: tl.constexpr):
    """The token of each row of a group; outside the TAIL all rows are patches."""
    patch = P + group * group_step + row * member_step
    return tl.where(row < G, patch, row - G) if TAIL else patch


@triton.jit
def _visible(query, key, group, G, P: tl.constexpr, MEAN: tl.constexpr):
    """Who sees whom, where rows may be prefix tokens or lie past the end of the group."""
    if MEAN:
        return key < G + P
    else:
        return (key < G + P) & ((key < G) | (query < G) | (group == 0))


@triton.jit
def _place(row, token, group, G, L, P: tl.constexpr, TAIL: tl.constexpr, MEAN: tl.constexpr):
    """Where the statistics of each row of a group lie among those of a head.

    With MEAN a prefix token has some in each group: they follow those of all tokens.
    """
    return tl.where(row < G, token, L + group * P + token) if TAIL and MEAN else token


@triton.jit
def _attend(
    q, k_base, v_base, values, m, l, query, start, group, G, group_step, member_step, token_stride, scale, scale_low,
    seed, threshold, kept_scale, sequence,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr,
    MEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of online softmax: the keys in rows start to start + BLOCK join the running values, maximum and sum."""
    key = start + tl.arange(0, BLOCK)
    token = _token(key, group, G, group_step, member_step, P, TAIL)
    k = load_tile(k_base, token, key < G + P, token_stride, D, BLOCK_D, TAIL)
    v = load_tile(v_base, token, key < G + P, token_stride, D, BLOCK_D, TAIL)
    s = scores(q, k, scale, scale_low, PRECISION)
    if TAIL:
        s = tl.where(_visible(query[:, None], key[None, :], group, G, P, MEAN), s, -float("inf"))
    new_m = tl.maximum(m, tl.max(s, 1))
    p = tl.exp2(s - new_m[:, None])
    correction = tl.exp2(m - new_m)
    l = l * correction + tl.sum(p, 1)
    if seed is not None:
        mask = kept(seed, threshold, query, start, tl.arange(0, BLOCK), group, sequence, BLOCK)
        p = tl.where(mask, p * kept_scale, 0.0)
    values = values * correction[:, None]
    return tl.dot(p.to(v.dtype), v, values, input_precision=PRECISION), new_m, l


@triton.jit
def _forward_tile(
    start, q_base, k_base, v_base, out, stats, partial_values, partial_stats, token_stride,
    sample, head, group, groups, G, group_step, member_step, L, H, scale, scale_low,
    seed, threshold, kept_scale,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, MEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    query = start + tl.arange(0, ROWS)
    token = _token(query, group, G, group_step, member_step, P, TAIL)
    q = load_tile(q_base, token, query < G + P, token_stride, D, BLOCK_D, TAIL)
    values = tl.zeros((ROWS, BLOCK_D), tl.float32)
    m = tl.full((ROWS,), LOWEST, tl.float32)
    l = tl.zeros((ROWS,), tl.float32)
    full = G // BLOCK_N * BLOCK_N
    for first in range(0, full, BLOCK_N):
        values, m, l = _attend(
            q, k_base, v_base, values, m, l, query, first, group, G, group_step, member_step, token_stride,
            scale, scale_low, seed, threshold, kept_scale, sample * H + head,
            P, D, BLOCK_D, BLOCK_N, False, MEAN, PRECISION,
        )  # fmt: skip
    if TAIL_N > 0:
        for first in tl.range(full, G + P, TAIL_N, num_stages=1):
            values, m, l = _attend(
                q, k_base, v_base, values, m, l, query, first, group, G, group_step, member_step,
                token_stride, scale, scale_low, seed, threshold, kept_scale, sample * H + head,
                P, D, BLOCK_D, TAIL_N, True, MEAN, PRECISION,
            )  # fmt: skip

    patch = query < G
    o = divide(values, l[:, None], q.dtype)
    store_tile(o, out + (sample * L * H + head) * D, token, patch, H * D, D, BLOCK_D, TAIL)
    place = _place(query, token, group, G, L, P, TAIL, MEAN)
    row_stats = stats + ((sample * H + head) * (L + groups * (P * MEAN)) + place) * 2
    of_itself = query < G + P if MEAN else patch
    tl.store(row_stats, m, mask=of_itself)
    tl.store(row_stats + 1, tl.div_rn(1.0, l), mask=of_itself)
    if TAIL and P > 0:
        prefix = (query >= G) & (query < G + P)
        row = ((sample * H + head) * P + token) * groups + group
        store_tile(o if MEAN else values, partial_values, row, prefix, D, D, BLOCK_D, True)
        if not MEAN:
            tl.store(partial_stats + row * 2, m, mask=prefix)
            tl.store(partial_stats + row * 2 + 1, l, mask=prefix)


@triton.jit
def flash_forward(
    q_ptr, k_ptr, v_ptr, out, stats, partial_values, partial_stats,
    sample_stride: tl.int64, token_stride: tl.int64, head_stride: tl.int64,
    groups, G, group_step, member_step, L, H, scale, scale_low, seed, threshold, kept_scale,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr,
    BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, MEAN: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    enter_chain(CHAINED)
    full = G // BLOCK_M if BLOCK_M > 0 else 0
    tiles = full
    if TAIL_M > 0:
        tiles += tl.cdiv(G + P - full * BLOCK_M, TAIL_M)
    program = tl.program_id(0)  # (sample, group, head, tile): tiles of one group share their keys in the cache
    tile, head, group = program % tiles, program // tiles % H, program // tiles // H % groups
    sample = (program // tiles // H // groups).to(tl.int64)
    offset = (sample * sample_stride + head * head_stride) * UNIT
    q_base, k_base, v_base = q_ptr + offset, k_ptr + offset, v_ptr + offset
    if seed is not None:
        seed = tl.load(seed)
    if BLOCK_M > 0 and tile < full:
        _forward_tile(
            tile * BLOCK_M, q_base, k_base, v_base, out, stats, partial_values, partial_stats, token_stride * UNIT,
            sample, head, group, groups, G, group_step, member_step, L, H, scale, scale_low,
            seed, threshold, kept_scale, P, D, BLOCK_D, BLOCK_M, False, BLOCK_N, TAIL_N, MEAN, PRECISION,
        )  # fmt: skip
    elif TAIL_M > 0:
        _forward_tile(
            full * BLOCK_M + (tile - full) * TAIL_M, q_base, k_base, v_base, out, stats, partial_values, partial_stats,
            token_stride * UNIT,
            sample, head, group, groups, G, group_step, member_step, L, H, scale, scale_low,
            seed, threshold, kept_scale, P, D, BLOCK_D, TAIL_M, True, BLOCK_N, TAIL_N, MEAN, PRECISION,
        )  # fmt: skip
