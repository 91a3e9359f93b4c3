# mypy: allow-incomplete-defs, no-check-untyped-defs
"""What comes before and after absorbed attention in Triton: a few query rows times the weights of the projections.

    u_h = norm_weight / sqrt(D) * (Wk_hᵀ q_h),  q = Wq LayerNorm(query) + bq
    out_h = Wv_h (norm_weight * z_h + norm_bias) + bv_h

A program takes up to 16 samples, the fewest rows that matrix units multiply, and rows that are not there are zeros: a
sample's result does not depend on its batch. Values are rounded to the rows' dtype where PyTorch's operations store
them, but once where they store twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hsta_kernels.ops.cross_modal_attention.triton_absorbed_columns import _centred, _chunk, _load, _moments
from hsta_kernels.ops.launch.triton_chain import enter_chain


@triton.jit
def _affine(x, norm_weight, norm_bias, first, C: tl.constexpr, CHUNK: tl.constexpr):
    """x * weight + bias for a chunk of columns, zero past column C."""
    columns = first + tl.arange(0, CHUNK)
    weight = tl.load(norm_weight + columns, mask=columns < C, other=0.0).to(tl.float32)
    bias = tl.load(norm_bias + columns, mask=columns < C, other=0.0).to(tl.float32)
    return x * weight[None, :] + bias[None, :]


@triton.jit
def absorb_query(
    query, norm_weight, norm_bias, q_weight, q_bias, k_weight, u,
    query_stride: tl.int64, samples, H, eps, scale,
    C: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """A chunk of a head's u. Every chunk computes q_h anew, from weights that L2 holds: a launch of its own would take
    longer."""
    enter_chain(CHAINED)
    chunks: tl.constexpr = (C + CHUNK - 1) // CHUNK
    program = tl.program_id(0)  # (samples, head, chunk)
    column, head = program % chunks * CHUNK, program // chunks % H
    sample = (program // chunks // H * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    valid = sample < samples
    dtype = query.dtype.element_ty
    offsets = sample * query_stride * UNIT
    mean, rstd = _moments(query, offsets, valid, C, eps, BLOCK, BLOCK_C)
    product = tl.zeros((BLOCK, CHUNK), tl.float32)
    for start in range(0, D, BLOCK_D):
        place = start + tl.arange(0, BLOCK_D)
        feature = head * D + place
        q = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for first in range(0, C, BLOCK_C):
            y = _centred(query, offsets, valid, mean, first, C, BLOCK_C) * rstd[:, None]
            y = _affine(y, norm_weight, norm_bias, first, C, BLOCK_C).to(dtype)
            weight = _load(q_weight, feature.to(tl.int64) * C, place < D, first, C, BLOCK_C)
            q = tl.dot(y, tl.trans(weight), q, input_precision=PRECISION)
        q += tl.load(q_bias + feature, mask=place < D, other=0.0).to(tl.float32)[None, :]
        weight = _load(k_weight, feature.to(tl.int64) * C, place < D, column, C, CHUNK)
        product = tl.dot(q.to(dtype), weight, product, input_precision=PRECISION)
    columns = column + tl.arange(0, CHUNK)
    factor = tl.load(norm_weight + columns, mask=columns < C, other=0.0).to(tl.float32) * scale
    pointers, mask = _chunk(u, (sample * H + head) * C, valid, column, C, CHUNK)
    tl.store(pointers, product.to(dtype).to(tl.float32) * factor[None, :], mask=mask)


@triton.jit
def project_values(
    z, norm_weight, norm_bias, v_weight, v_bias, out, samples, H,
    C: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """BLOCK_D of a head's results."""
    enter_chain(CHAINED)
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    program = tl.program_id(0)  # (samples, head, block of its results)
    head, place = program // blocks % H, program % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    sample = (program // blocks // H * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    feature = head * D + place
    dtype = out.dtype.element_ty
    result = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for first in range(0, C, BLOCK_C):
        y = _load(z, (sample * H + head) * C, sample < samples, first, C, BLOCK_C)
        y = _affine(y, norm_weight, norm_bias, first, C, BLOCK_C).to(dtype)
        weight = _load(v_weight, feature.to(tl.int64) * C, place < D, first, C, BLOCK_C)
        result = tl.dot(y, tl.trans(weight), result, input_precision=PRECISION)
    result += tl.load(v_bias + feature, mask=place < D, other=0.0).to(tl.float32)[None, :]
    mask = (sample < samples)[:, None] & (place < D)[None, :]
    tl.store(out + sample[:, None] * C + feature[None, :], result.to(dtype), mask=mask)
