"""The backward pass of triton_flash.py where a program holds a whole group: all three gradients in one kernel.

The group's queries stay, and its keys pass by, a tile at a time: dq is summed up, dk and dv of a tile are complete.
So each score is computed once, by five products where the two kernels of triton_flash_backward.py take seven, and every
row is read once. δ_i = dO_i·O_i takes a sixth.
"""

# mypy: allow-incomplete-defs, no-check-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from hsta_kernels.ops.launch.triton_chain import enter_chain
from hsta_kernels.ops.space_time_attention.triton_flash import _token, _visible
from hsta_kernels.ops.space_time_attention.triton_tile import load_tile, scores, store_tile


@triton.jit
def _keys(
    dq, q, do, m, inverse_l, delta, query, start, k_base, v_base, dk_base, dv_base, partial_grads, prefix_row,
    group, groups, G, group_step, member_step, token_stride, H, scale, scale_low, grad_scale,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq plus what the keys in rows start to start + BLOCK contribute; writes these keys' and values' gradients."""
    key = start + tl.arange(0, BLOCK)
    valid = key < G + P
    token = _token(key, group, G, group_step, member_step, P, TAIL)
    k = load_tile(k_base, token, valid, token_stride, D, BLOCK_D, TAIL)
    v = load_tile(v_base, token, valid, token_stride, D, BLOCK_D, TAIL)
    s = scores(q, k, scale, scale_low, PRECISION)
    p = tl.exp2(s - m[:, None]) * inverse_l[:, None]
    seen = (query < G + P)[:, None]  # a row past the group's end is zero, but its score is NaN where a key is infinite
    if TAIL:
        seen &= _visible(query[:, None], key[None, :], group, G, P, False)
    p = tl.where(seen, p, 0.0)
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    # As (features, keys): instructions of four warps multiply 64 rows, and of keys there are fewer.
    dv = tl.trans(tl.dot(tl.trans(do), p.to(do.dtype), input_precision=PRECISION))
    ds = (p * (dp - delta[:, None])).to(q.dtype)
    dk = tl.trans(tl.dot(tl.trans(q), ds, input_precision=PRECISION)) * grad_scale
    store_tile(dk, dk_base, token, key < G, PARTS * H * D, D, BLOCK_D, TAIL)
    store_tile(dv, dv_base, token, key < G, PARTS * H * D, D, BLOCK_D, TAIL)
    if TAIL and P > 0:
        part = H * P * groups
        row = prefix_row + part + token * groups
        store_tile(dk, partial_grads, row, (key >= G) & valid, D, D, BLOCK_D, True)
        store_tile(dv, partial_grads, row + part, (key >= G) & valid, D, D, BLOCK_D, True)
    return tl.dot(ds, k, dq, input_precision=PRECISION)


@triton.jit
def group_backward(
    grad_out, q_ptr, k_ptr, v_ptr, out, stats, dq_ptr, dk_ptr, dv_ptr, partial_grads,
    grad_sample_stride: tl.int64, grad_token_stride: tl.int64, grad_head_stride: tl.int64,
    sample_stride: tl.int64, token_stride: tl.int64, head_stride: tl.int64,
    groups, G, group_step, member_step, L, H, scale, scale_low, grad_scale,
    P: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr, GRAD_UNIT: tl.constexpr, PRECISION: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    enter_chain(CHAINED)
    program = tl.program_id(0)
    head, group = program % H, program // H % groups
    sample = (program // H // groups).to(tl.int64)
    offset = (sample * sample_stride + head * head_stride) * UNIT
    k_base, v_base = k_ptr + offset, v_ptr + offset
    grad_base = grad_out + (sample * grad_sample_stride + head * grad_head_stride) * GRAD_UNIT
    query = tl.arange(0, ROWS)
    valid = query < G + P
    token = _token(query, group, G, group_step, member_step, P, True)
    q = load_tile(q_ptr + offset, token, valid, token_stride * UNIT, D, BLOCK_D, True)
    do = load_tile(grad_base, token, valid, grad_token_stride * GRAD_UNIT, D, BLOCK_D, True)
    row_stats = stats + ((sample * H + head) * L + token) * 2
    m = tl.load(row_stats, mask=valid, other=0.0)
    inverse_l = tl.load(row_stats + 1, mask=valid, other=1.0)
    # By the same kind of product as dp, so that with a one-hot p they cancel exactly.
    delta = tl.zeros((ROWS,), tl.float32)
    for first in tl.range(0, G + P, BLOCK_N, disable_licm=True):
        row = first + tl.arange(0, BLOCK_N)
        row_token = _token(row, group, G, group_step, member_step, P, True)
        o = load_tile(out + (sample * L * H + head) * D, row_token, row < G + P, H * D, D, BLOCK_D, True)
        product = tl.dot(do, tl.trans(o), input_precision=PRECISION)
        delta += tl.sum(tl.where(query[:, None] == row[None, :], product, 0.0), 1)

    offset = (sample * L * PARTS * H + head) * D
    prefix_row = (sample * 3 * H + head) * P * groups + group
    dq = tl.zeros((ROWS, BLOCK_D), tl.float32)
    full = G // BLOCK_N * BLOCK_N
    # What does not change from turn to turn is computed anew: descriptors of the operands of 16 instructions a product,
    # kept in registers, spill.
    for first in tl.range(0, full, BLOCK_N, disable_licm=True):
        dq = _keys(
            dq, q, do, m, inverse_l, delta, query, first, k_base, v_base, dk_ptr + offset, dv_ptr + offset,
            partial_grads, prefix_row, group, groups, G, group_step, member_step, token_stride * UNIT, H,
            scale, scale_low, grad_scale, P, D, BLOCK_D, BLOCK_N, False, PARTS, PRECISION,
        )  # fmt: skip
    if TAIL_N > 0:
        for first in tl.range(full, G + P, TAIL_N, num_stages=1, disable_licm=True):
            dq = _keys(
                dq, q, do, m, inverse_l, delta, query, first, k_base, v_base, dk_ptr + offset, dv_ptr + offset,
                partial_grads, prefix_row, group, groups, G, group_step, member_step, token_stride * UNIT, H,
                scale, scale_low, grad_scale, P, D, BLOCK_D, TAIL_N, True, PARTS, PRECISION,
            )  # fmt: skip
    dq *= grad_scale
    store_tile(dq, dq_ptr + offset, token, query < G, PARTS * H * D, D, BLOCK_D, True)
    if P > 0:
        store_tile(dq, partial_grads, prefix_row + token * groups, (query >= G) & valid, D, D, BLOCK_D, True)
