"""The backward pass of triton_flash.py: one kernel for the queries' gradients, one for the keys' and values'.

Each gradient is summed by one program in a fixed order, so results are the same bit for bit from run to run, at the
price of computing the scores twice. δ_i = Σ_j p_ij dp_ij = dO_i·O_i is found by the first kernel for the second.
"""

# mypy: allow-incomplete-defs, no-check-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from hsta_kernels.ops.launch.triton_chain import enter_chain
from hsta_kernels.ops.space_time_attention.triton_flash import _place, _token, _visible
from hsta_kernels.ops.space_time_attention.triton_tile import diagonal, kept, load_tile, scores, store_tile


@triton.jit
def _p_and_dp(
    q, do, m, inverse_l, k_base, v_base, query, start, group, G, group_step, member_step, token_stride,
    scale, scale_low, seed, threshold, kept_scale, sequence,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr,
    MEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Probabilities of the keys in rows start to start + BLOCK, the probabilities' gradients, and these keys."""
    key = start + tl.arange(0, BLOCK)
    token = _token(key, group, G, group_step, member_step, P, TAIL)
    k = load_tile(k_base, token, key < G + P, token_stride, D, BLOCK_D, TAIL)
    v = load_tile(v_base, token, key < G + P, token_stride, D, BLOCK_D, TAIL)
    s = scores(q, k, scale, scale_low, PRECISION)
    p = tl.exp2(s - m[:, None]) * inverse_l[:, None]
    if TAIL:
        p = tl.where(_visible(query[:, None], key[None, :], group, G, P, MEAN), p, 0.0)
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    if seed is not None:
        mask = kept(seed, threshold, query, start, tl.arange(0, BLOCK), group, sequence, BLOCK)
        dp = tl.where(mask, dp * kept_scale, 0.0)
    return p, dp, k


@triton.jit
def _add_to_dq(
    dq, q, do, m, inverse_l, delta, k_base, v_base, query, start, group, G, group_step, member_step, token_stride,
    scale, scale_low, seed, threshold, kept_scale, sequence,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr,
    MEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq plus what the keys in rows start to start + BLOCK contribute."""
    p, dp, k = _p_and_dp(
        q, do, m, inverse_l, k_base, v_base, query, start, group, G, group_step, member_step, token_stride,
        scale, scale_low, seed, threshold, kept_scale, sequence, P, D, BLOCK_D, BLOCK, TAIL, MEAN, PRECISION,
    )  # fmt: skip
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def _delta(
    q, do, m, inverse_l, k_base, v_base, query, group, G, group_step, member_step, token_stride, scale, scale_low,
    seed, threshold, kept_scale, sequence,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """δ = Σ p·dp over a group: with MEAN, what a prefix query gave in one group is in no output."""
    delta = tl.zeros((ROWS,), tl.float32)
    full = G // BLOCK_N * BLOCK_N
    for first in range(0, full, BLOCK_N):
        p, dp, _ = _p_and_dp(
            q, do, m, inverse_l, k_base, v_base, query, first, group, G, group_step, member_step, token_stride,
            scale, scale_low, seed, threshold, kept_scale, sequence, P, D, BLOCK_D, BLOCK_N, False, True, PRECISION,
        )  # fmt: skip
        delta += tl.sum(p * dp, 1)
    for first in tl.range(full, G + P, TAIL_N, num_stages=1):
        p, dp, _ = _p_and_dp(
            q, do, m, inverse_l, k_base, v_base, query, first, group, G, group_step, member_step, token_stride,
            scale, scale_low, seed, threshold, kept_scale, sequence, P, D, BLOCK_D, TAIL_N, True, True, PRECISION,
        )  # fmt: skip
        delta += tl.sum(p * dp, 1)
    return delta


@triton.jit
def _dq_tile(
    start, grad_base, q_base, k_base, v_base, out, stats, delta_rows, dq_ptr, partial_grads,
    grad_token_stride, token_stride,
    sample, head, group, groups, G, group_step, member_step, L, H, scale, scale_low, grad_scale,
    seed, threshold, kept_scale,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, PARTS: tl.constexpr, MEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    query = start + tl.arange(0, ROWS)
    valid = query < G + P
    token = _token(query, group, G, group_step, member_step, P, TAIL)
    q = load_tile(q_base, token, valid, token_stride, D, BLOCK_D, TAIL)
    do = load_tile(grad_base, token, valid, grad_token_stride, D, BLOCK_D, TAIL)
    row = (sample * H + head) * (L + groups * (P * MEAN)) + _place(query, token, group, G, L, P, TAIL, MEAN)
    if not (TAIL and MEAN):
        o = load_tile(out + (sample * L * H + head) * D, token, valid, H * D, D, BLOCK_D, TAIL)
        # By the same kind of product as dp, so that with a one-hot p they cancel exactly.
        delta = diagonal(tl.dot(do, tl.trans(o), input_precision=PRECISION), ROWS)
        tl.store(delta_rows + row, delta, mask=valid)  # a prefix token's is the same in every group
    m = tl.load(stats + row * 2, mask=valid, other=0.0)
    inverse_l = tl.load(stats + row * 2 + 1, mask=valid, other=1.0)
    if TAIL and MEAN:
        delta = _delta(
            q, do, m, inverse_l, k_base, v_base, query, group, G, group_step, member_step, token_stride,
            scale, scale_low, seed, threshold, kept_scale, sample * H + head,
            P, D, BLOCK_D, ROWS, BLOCK_N, TAIL_N, PRECISION,
        )  # fmt: skip
        tl.store(delta_rows + row, delta, mask=valid)
    dq = tl.zeros((ROWS, BLOCK_D), tl.float32)
    full = G // BLOCK_N * BLOCK_N
    for first in range(0, full, BLOCK_N):
        dq = _add_to_dq(
            dq, q, do, m, inverse_l, delta, k_base, v_base, query, first, group, G, group_step, member_step,
            token_stride, scale, scale_low, seed, threshold, kept_scale, sample * H + head,
            P, D, BLOCK_D, BLOCK_N, False, MEAN, PRECISION,
        )  # fmt: skip
    if TAIL_N > 0:
        for first in tl.range(full, G + P, TAIL_N, num_stages=1):
            dq = _add_to_dq(
                dq, q, do, m, inverse_l, delta, k_base, v_base, query, first, group, G, group_step, member_step,
                token_stride, scale, scale_low, seed, threshold, kept_scale, sample * H + head,
                P, D, BLOCK_D, TAIL_N, True, MEAN, PRECISION,
            )  # fmt: skip
    dq *= grad_scale
    store_tile(
        dq, dq_ptr + (sample * L * PARTS * H + head) * D, token, query < G, PARTS * H * D, D, BLOCK_D, TAIL
    )  # fmt: skip
    if TAIL and P > 0:
        if MEAN:
            dq /= groups
        row = ((sample * 3 * H + head) * P + token) * groups + group
        store_tile(dq, partial_grads, row, (query >= G) & valid, D, D, BLOCK_D, True)


@triton.jit
def flash_backward_q(
    grad_out, q_ptr, k_ptr, v_ptr, out, stats, delta_rows, dq_ptr, partial_grads,
    grad_sample_stride: tl.int64, grad_token_stride: tl.int64, grad_head_stride: tl.int64,
    sample_stride: tl.int64, token_stride: tl.int64, head_stride: tl.int64,
    groups, G, group_step, member_step, L, H, scale, scale_low, grad_scale, seed, threshold, kept_scale,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr,
    BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, PARTS: tl.constexpr, MEAN: tl.constexpr, UNIT: tl.constexpr,
    GRAD_UNIT: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    enter_chain(CHAINED)
    full = G // BLOCK_M if BLOCK_M > 0 else 0
    tiles = full
    if TAIL_M > 0:
        tiles += tl.cdiv(G + P - full * BLOCK_M, TAIL_M)
    program = tl.program_id(0)
    tile, head, group = program % tiles, program // tiles % H, program // tiles // H % groups
    sample = (program // tiles // H // groups).to(tl.int64)
    offset = (sample * sample_stride + head * head_stride) * UNIT
    q_base, k_base, v_base = q_ptr + offset, k_ptr + offset, v_ptr + offset
    grad_base = grad_out + (sample * grad_sample_stride + head * grad_head_stride) * GRAD_UNIT
    if seed is not None:
        seed = tl.load(seed)
    if BLOCK_M > 0 and tile < full:
        _dq_tile(
            tile * BLOCK_M, grad_base, q_base, k_base, v_base, out, stats, delta_rows, dq_ptr, partial_grads,
            grad_token_stride * GRAD_UNIT, token_stride * UNIT,
            sample, head, group, groups, G, group_step, member_step, L, H, scale, scale_low, grad_scale,
            seed, threshold, kept_scale, P, D, BLOCK_D, BLOCK_M, False, BLOCK_N, TAIL_N, PARTS, MEAN, PRECISION,
        )  # fmt: skip
    elif TAIL_M > 0:
        _dq_tile(
            full * BLOCK_M + (tile - full) * TAIL_M, grad_base, q_base, k_base, v_base, out, stats, delta_rows,
            dq_ptr, partial_grads,
            grad_token_stride * GRAD_UNIT, token_stride * UNIT,
            sample, head, group, groups, G, group_step, member_step, L, H, scale, scale_low, grad_scale,
            seed, threshold, kept_scale, P, D, BLOCK_D, TAIL_M, True, BLOCK_N, TAIL_N, PARTS, MEAN, PRECISION,
        )  # fmt: skip


@triton.jit
def _add_to_dk_dv(
    dk, dv, k, v, q_base, grad_base, row_stats, row_delta, key, start, group, groups, G, group_step, member_step,
    token_stride, grad_token_stride, L, scale, scale_low, seed, threshold, kept_scale, first_key, sequence,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr,
    MEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv plus what the queries in rows start to start + BLOCK contribute."""
    query = start + tl.arange(0, BLOCK)
    valid = query < G + P
    token = _token(query, group, G, group_step, member_step, P, TAIL)
    q = load_tile(q_base, token, valid, token_stride, D, BLOCK_D, TAIL)
    do = load_tile(grad_base, token, valid, grad_token_stride, D, BLOCK_D, TAIL)
    place = _place(query, token, group, G, L, P, TAIL, MEAN)
    m = tl.load(row_stats + place * 2, mask=valid, other=0.0)
    inverse_l = tl.load(row_stats + place * 2 + 1, mask=valid, other=1.0)
    delta = tl.load(row_delta + place, mask=valid, other=0.0)
    s = scores(k, q, scale, scale_low, PRECISION)  # (keys, queries)
    p = tl.exp2(s - m[None, :]) * inverse_l[None, :]
    if TAIL:
        p = tl.where(_visible(query[None, :], key[:, None], group, G, P, MEAN) & valid[None, :], p, 0.0)
    if TAIL and MEAN:  # of a prefix query's gradient each group has its share
        p = tl.where(query[None, :] < G, p, p / groups)
    weights = p
    if seed is not None:
        keys: tl.constexpr = key.shape[0]
        mask = tl.trans(kept(seed, threshold, query, first_key, tl.arange(0, keys), group, sequence, keys))
        weights = tl.where(mask, p * kept_scale, 0.0)
    dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
    dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
    if seed is not None:
        dp = tl.where(mask, dp * kept_scale, 0.0)
    ds = p * (dp - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def _dk_dv_tile(
    start, grad_base, q_base, k_base, v_base, row_stats, row_delta, dk_ptr, dv_ptr, partial_grads,
    grad_token_stride, token_stride,
    sample, head, group, groups, G, group_step, member_step, L, H, scale, scale_low, grad_scale,
    seed, threshold, kept_scale,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, PARTS: tl.constexpr, MEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    key = start + tl.arange(0, ROWS)
    valid = key < G + P
    token = _token(key, group, G, group_step, member_step, P, TAIL)
    k = load_tile(k_base, token, valid, token_stride, D, BLOCK_D, TAIL)
    v = load_tile(v_base, token, valid, token_stride, D, BLOCK_D, TAIL)
    dk = tl.zeros((ROWS, BLOCK_D), tl.float32)
    dv = tl.zeros((ROWS, BLOCK_D), tl.float32)
    full = G // BLOCK_N * BLOCK_N
    for first in range(0, full, BLOCK_N):
        dk, dv = _add_to_dk_dv(
            dk, dv, k, v, q_base, grad_base, row_stats, row_delta, key, first, group, groups, G, group_step,
            member_step, token_stride, grad_token_stride, L, scale, scale_low,
            seed, threshold, kept_scale, start, sample * H + head,
            P, D, BLOCK_D, BLOCK_N, False, MEAN, PRECISION,
        )  # fmt: skip
    if TAIL_N > 0:
        for first in tl.range(full, G + P, TAIL_N, num_stages=1):
            dk, dv = _add_to_dk_dv(
                dk, dv, k, v, q_base, grad_base, row_stats, row_delta, key, first, group, groups, G, group_step,
                member_step, token_stride, grad_token_stride, L, scale, scale_low,
                seed, threshold, kept_scale, start, sample * H + head,
                P, D, BLOCK_D, TAIL_N, True, MEAN, PRECISION,
            )  # fmt: skip
    dk *= grad_scale
    offset = (sample * L * PARTS * H + head) * D
    store_tile(dk, dk_ptr + offset, token, key < G, PARTS * H * D, D, BLOCK_D, TAIL)
    store_tile(dv, dv_ptr + offset, token, key < G, PARTS * H * D, D, BLOCK_D, TAIL)
    if TAIL and P > 0:
        row = (((sample * 3 + 1) * H + head) * P + token) * groups + group
        store_tile(dk, partial_grads, row, (key >= G) & valid, D, D, BLOCK_D, True)
        store_tile(dv, partial_grads, row + H * P * groups, (key >= G) & valid, D, D, BLOCK_D, True)


@triton.jit
def flash_backward_kv(
    grad_out, q_ptr, k_ptr, v_ptr, stats, delta_rows, dk_ptr, dv_ptr, partial_grads,
    grad_sample_stride: tl.int64, grad_token_stride: tl.int64, grad_head_stride: tl.int64,
    sample_stride: tl.int64, token_stride: tl.int64, head_stride: tl.int64,
    groups, G, group_step, member_step, L, H, scale, scale_low, grad_scale, seed, threshold, kept_scale,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr,
    BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, PARTS: tl.constexpr, MEAN: tl.constexpr, UNIT: tl.constexpr,
    GRAD_UNIT: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    enter_chain(CHAINED)
    full = G // BLOCK_M if BLOCK_M > 0 else 0
    tiles = full
    if TAIL_M > 0:
        tiles += tl.cdiv(G + P - full * BLOCK_M, TAIL_M)
    program = tl.program_id(0)
    tile, head, group = program % tiles, program // tiles % H, program // tiles // H % groups
    sample = (program // tiles // H // groups).to(tl.int64)
    offset = (sample * sample_stride + head * head_stride) * UNIT
    q_base, k_base, v_base = q_ptr + offset, k_ptr + offset, v_ptr + offset
    grad_base = grad_out + (sample * grad_sample_stride + head * grad_head_stride) * GRAD_UNIT
    row = (sample * H + head) * (L + groups * (P * MEAN))
    if seed is not None:
        seed = tl.load(seed)
    if BLOCK_M > 0 and tile < full:
        _dk_dv_tile(
            tile * BLOCK_M, grad_base, q_base, k_base, v_base, stats + row * 2, delta_rows + row, dk_ptr, dv_ptr,
            partial_grads,
            grad_token_stride * GRAD_UNIT, token_stride * UNIT,
            sample, head, group, groups, G, group_step, member_step, L, H, scale, scale_low, grad_scale,
            seed, threshold, kept_scale, P, D, BLOCK_D, BLOCK_M, False, BLOCK_N, TAIL_N, PARTS, MEAN, PRECISION,
        )  # fmt: skip
    elif TAIL_M > 0:
        _dk_dv_tile(
            full * BLOCK_M + (tile - full) * TAIL_M, grad_base, q_base, k_base, v_base, stats + row * 2,
            delta_rows + row, dk_ptr, dv_ptr, partial_grads, grad_token_stride * GRAD_UNIT, token_stride * UNIT,
            sample, head, group, groups, G, group_step, member_step, L, H, scale, scale_low, grad_scale,
            seed, threshold, kept_scale, P, D, BLOCK_D, TAIL_M, True, BLOCK_N, TAIL_N, PARTS, MEAN, PRECISION,
        )  # fmt: skip
