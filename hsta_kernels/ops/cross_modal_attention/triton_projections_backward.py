# mypy: allow-incomplete-defs, no-check-untyped-defs
"""Gradients of what triton_projections.py computes, of all weights and of the query row: one kernel before absorbed
attention's backward pass, which needs grad_z, and three after it.

    grad_z_h = norm_weight * (Wv_hᵀ grad_out_h)                            project_values_backward
    grad_q_h = Wk_h (norm_weight / sqrt(D) * grad_u_h)                     query_backward, with q anew
    grad_y = Σ_h Wq_hᵀ grad_q_h                                            absorb_query_backward, the sum's parts
    LayerNorm's backward of grad_y, and its weight's and bias's gradients  norm_backward

Samples come 16 at a time as in the forward kernels, so that a sample's gradient does not depend on its batch; what is
summed over samples or heads is summed by one program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hsta_kernels.ops.cross_modal_attention.triton_absorbed_columns import _centred, _chunk, _load, _moments
from hsta_kernels.ops.cross_modal_attention.triton_projections import _affine
from hsta_kernels.ops.launch.triton_chain import enter_chain


@triton.jit
def _product(
    rows, weight, sample, valid, head, column,
    C: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A chunk of the samples' features of a head times its rows of a weight, (BLOCK, CHUNK)."""
    product = tl.zeros((BLOCK, CHUNK), tl.float32)
    for start in range(0, D, BLOCK_D):
        place = start + tl.arange(0, BLOCK_D)
        left = _load(rows, sample * C + head * D, valid, start, D, BLOCK_D)
        right = _load(weight, (head * D + place).to(tl.int64) * C, place < D, column, C, CHUNK)
        product = tl.dot(left, right, product, input_precision=PRECISION)
    return product


@triton.jit
def _normalized(query, offsets, moments, sample, valid, first, C: tl.constexpr, CHUNK: tl.constexpr):
    """A chunk of the normalized query rows, zero where nothing is, whatever eps."""
    mean = tl.load(moments + 2 * sample, mask=valid, other=0.0)
    rstd = tl.load(moments + 2 * sample + 1, mask=valid, other=0.0)
    return _centred(query, offsets, valid, mean, first, C, CHUNK) * rstd[:, None]


@triton.jit
def project_values_backward(
    grad_out, z, norm_weight, norm_bias, v_weight, grad_z, grad_v_weight, grad_v_bias, norm_parts, samples, H,
    C: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """A chunk of a head's grad_z, of its rows of v_weight's gradient and of its parts of the norm's."""
    enter_chain(CHAINED)
    chunks: tl.constexpr = (C + CHUNK - 1) // CHUNK
    column, head = tl.program_id(0) % chunks * CHUNK, tl.program_id(0) // chunks
    dtype = grad_out.dtype.element_ty
    columns = column + tl.arange(0, CHUNK)
    factor = tl.load(norm_weight + columns, mask=columns < C, other=0.0).to(tl.float32)
    of_norm_weight = tl.zeros((CHUNK,), tl.float32)
    of_norm_bias = tl.zeros((CHUNK,), tl.float32)
    for first in range(0, samples, BLOCK):
        sample = (first + tl.arange(0, BLOCK)).to(tl.int64)
        valid = sample < samples
        grad_y = _product(grad_out, v_weight, sample, valid, head, column, C, D, BLOCK, BLOCK_D, CHUNK, PRECISION)
        grad_y = grad_y.to(dtype).to(tl.float32)
        of_norm_bias += tl.sum(grad_y, 0)
        of_norm_weight += tl.sum(grad_y * _load(z, (sample * H + head) * C, valid, column, C, CHUNK), 0)
        pointers, mask = _chunk(grad_z, (sample * H + head) * C, valid, column, C, CHUNK)
        tl.store(pointers, grad_y * factor[None, :], mask=mask)
    tl.store(norm_parts + head * C + columns, of_norm_bias, mask=columns < C)
    tl.store(norm_parts + (H + head) * C + columns, of_norm_weight, mask=columns < C)
    for start in range(0, D, BLOCK_D):
        place = start + tl.arange(0, BLOCK_D)
        total = tl.zeros((BLOCK_D, CHUNK), tl.float32)
        of_bias = tl.zeros((BLOCK_D,), tl.float32)
        for first in range(0, samples, BLOCK):
            sample = (first + tl.arange(0, BLOCK)).to(tl.int64)
            valid = sample < samples
            grad = _load(grad_out, sample * C + head * D, valid, start, D, BLOCK_D)
            y = _load(z, (sample * H + head) * C, valid, column, C, CHUNK)
            y = _affine(y, norm_weight, norm_bias, column, C, CHUNK).to(dtype)
            total = tl.dot(tl.trans(grad), y, total, input_precision=PRECISION)
            of_bias += tl.sum(grad.to(tl.float32), 0)
        feature = head * D + place
        pointers, mask = _chunk(grad_v_weight, feature.to(tl.int64) * C, place < D, column, C, CHUNK)
        tl.store(pointers, total.to(dtype), mask=mask)
        if column == 0:
            tl.store(grad_v_bias + feature, of_bias.to(dtype), mask=place < D)


@triton.jit
def query_backward(
    grad_u, query, norm_weight, norm_bias, q_weight, q_bias, k_weight, q, grad_q, moments,
    query_stride: tl.int64, samples, H, eps, scale,
    C: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """BLOCK_D of a head's q and of its gradient, and the queries' moments."""
    enter_chain(CHAINED)
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    program = tl.program_id(0)  # (samples, head, block of its features)
    head, place = program // blocks % H, program % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    sample = (program // blocks // H * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    valid = sample < samples
    feature = head * D + place
    rows = feature.to(tl.int64) * C
    dtype = query.dtype.element_ty
    offsets = sample * query_stride * UNIT
    mean, rstd = _moments(query, offsets, valid, C, eps, BLOCK, BLOCK_C)
    features = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    grad = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for first in range(0, C, BLOCK_C):
        y = _centred(query, offsets, valid, mean, first, C, BLOCK_C) * rstd[:, None]
        y = _affine(y, norm_weight, norm_bias, first, C, BLOCK_C).to(dtype)
        weight = _load(q_weight, rows, place < D, first, C, BLOCK_C)
        features = tl.dot(y, tl.trans(weight), features, input_precision=PRECISION)
        grad_absorbed = _load(grad_u, (sample * H + head) * C, valid, first, C, BLOCK_C)
        columns = first + tl.arange(0, BLOCK_C)
        factor = tl.load(norm_weight + columns, mask=columns < C, other=0.0).to(tl.float32) * scale
        weight = _load(k_weight, rows, place < D, first, C, BLOCK_C)
        grad_absorbed = (grad_absorbed * factor[None, :]).to(dtype)
        grad = tl.dot(grad_absorbed, tl.trans(weight), grad, input_precision=PRECISION)
    features += tl.load(q_bias + feature, mask=place < D, other=0.0).to(tl.float32)[None, :]
    mask = valid[:, None] & (place < D)[None, :]
    pointers = sample[:, None] * C + feature[None, :]
    tl.store(q + pointers, features.to(dtype), mask=mask)
    tl.store(grad_q + pointers, grad.to(dtype), mask=mask)
    if program % (blocks * H) == 0:
        tl.store(moments + 2 * sample, mean, mask=valid)
        tl.store(moments + 2 * sample + 1, rstd, mask=valid)


@triton.jit
def absorb_query_backward(
    grad_u, query, norm_weight, norm_bias, q_weight, k_weight, q, grad_q, moments,
    grad_q_weight, grad_q_bias, grad_k_weight, grad_k_bias, grad_y_parts, norm_parts,
    query_stride: tl.int64, samples, H, scale,
    C: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """A chunk of a head's part of grad_y and of its rows of q_weight's and k_weight's gradients; what the query adds
    to its part of norm_weight's. And the zeros that are k_bias's gradient: it shifts a head's scores all alike."""
    enter_chain(CHAINED)
    chunks: tl.constexpr = (C + CHUNK - 1) // CHUNK
    column, head = tl.program_id(0) % chunks * CHUNK, tl.program_id(0) // chunks
    dtype = query.dtype.element_ty
    columns = column + tl.arange(0, CHUNK)
    of_weight = tl.zeros((CHUNK,), tl.float32)
    for first in range(0, samples, BLOCK):
        sample = (first + tl.arange(0, BLOCK)).to(tl.int64)
        valid = sample < samples
        absorbed = _product(q, k_weight, sample, valid, head, column, C, D, BLOCK, BLOCK_D, CHUNK, PRECISION)
        grad = _load(grad_u, (sample * H + head) * C, valid, column, C, CHUNK)
        of_weight += tl.sum(grad * absorbed.to(dtype).to(tl.float32), 0)
        grad_y = _product(grad_q, q_weight, sample, valid, head, column, C, D, BLOCK, BLOCK_D, CHUNK, PRECISION)
        pointers, mask = _chunk(grad_y_parts, (head * samples + sample) * C, valid, column, C, CHUNK)
        tl.store(pointers, grad_y, mask=mask)
    norm_parts += (H + head) * C + columns
    of_weight = of_weight * scale + tl.load(norm_parts, mask=columns < C)
    tl.store(norm_parts, of_weight, mask=columns < C)
    factor = tl.load(norm_weight + columns, mask=columns < C, other=0.0).to(tl.float32) * scale
    for start in range(0, D, BLOCK_D):
        place = start + tl.arange(0, BLOCK_D)
        of_q_weight = tl.zeros((BLOCK_D, CHUNK), tl.float32)
        of_k_weight = tl.zeros((BLOCK_D, CHUNK), tl.float32)
        of_bias = tl.zeros((BLOCK_D,), tl.float32)
        for first in range(0, samples, BLOCK):
            sample = (first + tl.arange(0, BLOCK)).to(tl.int64)
            valid = sample < samples
            grad = _load(grad_u, (sample * H + head) * C, valid, column, C, CHUNK)
            grad = (grad * factor[None, :]).to(dtype)
            features = _load(q, sample * C + head * D, valid, start, D, BLOCK_D)
            of_k_weight = tl.dot(tl.trans(features), grad, of_k_weight, input_precision=PRECISION)
            y = _normalized(query, sample * query_stride * UNIT, moments, sample, valid, column, C, CHUNK)
            y = _affine(y, norm_weight, norm_bias, column, C, CHUNK).to(dtype)
            features = _load(grad_q, sample * C + head * D, valid, start, D, BLOCK_D)
            of_q_weight = tl.dot(tl.trans(features), y, of_q_weight, input_precision=PRECISION)
            of_bias += tl.sum(features.to(tl.float32), 0)
        feature = head * D + place
        pointers, mask = _chunk(grad_q_weight, feature.to(tl.int64) * C, place < D, column, C, CHUNK)
        tl.store(pointers, of_q_weight.to(dtype), mask=mask)
        pointers, mask = _chunk(grad_k_weight, feature.to(tl.int64) * C, place < D, column, C, CHUNK)
        tl.store(pointers, of_k_weight.to(dtype), mask=mask)
        if column == 0:
            tl.store(grad_q_bias + feature, of_bias.to(dtype), mask=place < D)
            tl.store(grad_k_bias + feature, tl.zeros((BLOCK_D,), dtype), mask=place < D)


@triton.jit
def _sum_heads(
    parts, sample, valid, first, samples, H,
    C: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A chunk of grad_y from its parts (H, samples, C), BLOCK_H heads at a time."""
    columns = first + tl.arange(0, CHUNK)
    total = tl.zeros((BLOCK, CHUNK), tl.float32)
    for start in range(0, H, BLOCK_H):
        head = start + tl.arange(0, BLOCK_H)
        pointers = (head[:, None, None] * samples + sample[None, :, None]) * C + columns[None, None, :]
        mask = (head < H)[:, None, None] & valid[None, :, None] & (columns < C)[None, None, :]
        total += tl.sum(tl.load(parts + pointers, mask=mask, other=0.0), 0)
    return total


@triton.jit
def _sum_rows(parts, rows, first, C: tl.constexpr, CHUNK: tl.constexpr, BLOCK_H: tl.constexpr):
    """A chunk of the sum of so many rows, BLOCK_H at a time."""
    columns = first + tl.arange(0, CHUNK)
    total = tl.zeros((CHUNK,), tl.float32)
    for start in range(0, rows, BLOCK_H):
        row = start + tl.arange(0, BLOCK_H)
        mask = (row < rows)[:, None] & (columns < C)[None, :]
        total += tl.sum(tl.load(parts + row[:, None] * C + columns[None, :], mask=mask, other=0.0), 0)
    return total


@triton.jit
def norm_backward(
    query, norm_weight, moments, grad_y_parts, norm_parts, grad_query, grad_norm_weight, grad_norm_bias,
    query_stride: tl.int64, samples, H,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, CHUNK: tl.constexpr, BLOCK_H: tl.constexpr,
    UNIT: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """A sample's gradient through LayerNorm, added to grad_query; or, after all samples, a chunk of the gradients of
    the norm's weight and bias."""
    enter_chain(CHAINED)
    dtype = query.dtype.element_ty
    program = tl.program_id(0)
    if program < samples:
        sample = program.to(tl.int64) + tl.arange(0, 1)
        valid = sample < samples
        offsets = sample * query_stride * UNIT
        total = tl.zeros((1, BLOCK_C), tl.float32)
        product = tl.zeros((1, BLOCK_C), tl.float32)
        for first in range(0, C, BLOCK_C):
            columns = first + tl.arange(0, BLOCK_C)
            weight = tl.load(norm_weight + columns, mask=columns < C, other=0.0).to(tl.float32)
            x = _normalized(query, offsets, moments, sample, valid, first, C, BLOCK_C)
            grad_y = _sum_heads(grad_y_parts, sample, valid, first, samples, H, C, 1, BLOCK_C, BLOCK_H)
            grad_x = grad_y.to(dtype).to(tl.float32) * weight[None, :]
            total += grad_x
            product += grad_x * x
        mean = tl.sum(total, 1) / C
        slope = tl.sum(product, 1) / C
        rstd = tl.load(moments + 2 * sample + 1)
        for first in range(0, C, BLOCK_C):
            columns = first + tl.arange(0, BLOCK_C)
            weight = tl.load(norm_weight + columns, mask=columns < C, other=0.0).to(tl.float32)
            x = _normalized(query, offsets, moments, sample, valid, first, C, BLOCK_C)
            grad_y = _sum_heads(grad_y_parts, sample, valid, first, samples, H, C, 1, BLOCK_C, BLOCK_H)
            grad_x = grad_y.to(dtype).to(tl.float32) * weight[None, :]
            grad_x = (grad_x - mean[:, None] - x * slope[:, None]) * rstd[:, None]
            pointers, mask = _chunk(grad_query, sample * C, valid, first, C, BLOCK_C)
            tl.store(pointers, (tl.load(pointers, mask=mask).to(tl.float32) + grad_x).to(dtype), mask=mask)
    else:
        column = (program - samples) * CHUNK
        of_bias = _sum_rows(norm_parts, H, column, C, CHUNK, BLOCK_H)
        of_weight = _sum_rows(norm_parts + H * C, H, column, C, CHUNK, BLOCK_H)
        for first in range(0, samples, BLOCK):
            sample = (first + tl.arange(0, BLOCK)).to(tl.int64)
            valid = sample < samples
            x = _normalized(query, sample * query_stride * UNIT, moments, sample, valid, column, C, CHUNK)
            grad_y = _sum_heads(grad_y_parts, sample, valid, column, samples, H, C, BLOCK, CHUNK, BLOCK_H)
            grad_y = grad_y.to(dtype).to(tl.float32)
            of_bias += tl.sum(grad_y, 0)
            of_weight += tl.sum(grad_y * x, 0)
        columns = column + tl.arange(0, CHUNK)
        tl.store(grad_norm_weight + columns, of_weight.to(dtype), mask=columns < C)
        tl.store(grad_norm_bias + columns, of_bias.to(dtype), mask=columns < C)
