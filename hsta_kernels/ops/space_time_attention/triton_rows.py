"""Rows of q and k normalized and rotated, and the way back: what comes before attention and after its backward pass.

The kernels of attention have no registers left for it. A program takes the heads of some tokens one after the other, so
that what the heads share, the tables of the tokens and the weights of the norm, is read once. A row lies in the columns
of a tile such that the partners of a rotation are BLOCK_D / 2 columns apart, or neighbours.
"""

# mypy: allow-incomplete-defs, no-check-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _channels(PAIRS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Which channel of a row each column is, and whether there is one."""
    column = tl.arange(0, BLOCK_D)
    if PAIRS == "half" and D < BLOCK_D:
        pair = column % (BLOCK_D // 2)
        return column // (BLOCK_D // 2) * (D // 2) + pair, pair < D // 2
    else:
        return column, column < D


@triton.jit
def _partners(x, PAIRS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """(-second, first) of every pair (first, second)."""
    if PAIRS == "half":
        first, second = tl.split(tl.permute(tl.reshape(x, (BLOCK, 2, BLOCK_D // 2)), (0, 2, 1)))
        return tl.reshape(tl.permute(tl.join(-second, first), (0, 2, 1)), (BLOCK, BLOCK_D))
    else:
        first, second = tl.split(tl.reshape(x, (BLOCK, BLOCK_D // 2, 2)))
        return tl.reshape(tl.join(-second, first), (BLOCK, BLOCK_D))


@triton.jit
def _normalized(x, mask, eps, NORM: tl.constexpr, D: tl.constexpr):
    """The rows of `x` before weight and bias, and what they were multiplied by; `x` is zero where not `mask`."""
    if NORM == "layer":
        x = tl.where(mask, x - (tl.sum(x, 1) / D)[:, None], 0.0)
    rstd = (1 / tl.sqrt(tl.sum(x * x, 1) / D + eps))[:, None]
    return tl.where(mask, x * rstd, 0.0), rstd


@triton.jit
def normalize_and_rotate(
    q_ptr, k_ptr, q_out, k_out, cos_ptr, sin_ptr, affine,
    sample_stride: tl.int64, token_stride: tl.int64, head_stride: tl.int64,
    out_sample_stride: tl.int64, out_token_stride: tl.int64, out_head_stride: tl.int64,
    tokens, rows, H, eps,
    PAIRS: tl.constexpr, NORM: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    part, block = tl.program_id(0) % 2, tl.program_id(0) // 2
    if part == 0:
        x_ptr = q_ptr
        out = q_out
    else:
        x_ptr = k_ptr
        out = k_out
    row = block * BLOCK + tl.arange(0, BLOCK)  # of all samples
    sample, token = (row // tokens).to(tl.int64)[:, None], (row % tokens).to(tl.int64)[:, None]
    channel, exists = _channels(PAIRS, D, BLOCK_D)
    mask = (row < rows)[:, None] & exists[None, :]
    x_ptr += (sample * sample_stride + token * token_stride) * UNIT + channel[None, :]
    out += (sample * out_sample_stride + token * out_token_stride) * UNIT + channel[None, :]
    if PAIRS is not None:
        cos = tl.load(cos_ptr + token * D + channel[None, :], mask=mask, other=0.0)
        sin = tl.load(sin_ptr + token * D + channel[None, :], mask=mask, other=0.0)
    if NORM is not None:
        weight = tl.load(affine + 2 * part * D + channel, mask=exists, other=0.0)[None, :]
        bias = tl.load(affine + (2 * part + 1) * D + channel, mask=exists, other=0.0)[None, :]
    for head in range(H):
        x = tl.load(x_ptr + head * head_stride * UNIT, mask=mask, other=0.0).to(tl.float32)
        if NORM is not None:
            x, _ = _normalized(x, mask, eps, NORM, D)
            x = x * weight + bias
        if PAIRS is not None:
            x = x * cos + _partners(x, PAIRS, BLOCK, BLOCK_D) * sin
        tl.store(out + head * out_head_stride * UNIT, x.to(out.dtype.element_ty), mask=mask)


@triton.jit
def normalize_and_rotate_backward(
    q_ptr, k_ptr, dq_ptr, dk_ptr, cos_ptr, sin_ptr, affine, grad_parts,
    sample_stride: tl.int64, token_stride: tl.int64, head_stride: tl.int64,
    grad_sample_stride: tl.int64, grad_token_stride: tl.int64, grad_head_stride: tl.int64,
    tokens, rows, H, eps,
    PAIRS: tl.constexpr, NORM: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """The gradients of what was written become, in place, those of what was read; and this program's share of those of
    weight and bias, (part, program, weight or bias, D)."""
    part, block = tl.program_id(0) % 2, tl.program_id(0) // 2
    if part == 0:
        x_ptr = q_ptr
        grad_ptr = dq_ptr
    else:
        x_ptr = k_ptr
        grad_ptr = dk_ptr
    row = block * BLOCK + tl.arange(0, BLOCK)
    sample, token = (row // tokens).to(tl.int64)[:, None], (row % tokens).to(tl.int64)[:, None]
    channel, exists = _channels(PAIRS, D, BLOCK_D)
    mask = (row < rows)[:, None] & exists[None, :]
    x_ptr += (sample * sample_stride + token * token_stride) * UNIT + channel[None, :]
    grad_ptr += (sample * grad_sample_stride + token * grad_token_stride) * UNIT + channel[None, :]
    if PAIRS is not None:
        cos = tl.load(cos_ptr + token * D + channel[None, :], mask=mask, other=0.0)
        sin = tl.load(sin_ptr + token * D + channel[None, :], mask=mask, other=0.0)
    if NORM is not None:
        weight = tl.load(affine + 2 * part * D + channel, mask=exists, other=0.0)[None, :]
        dweight = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        dbias = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for head in range(H):
        grad = tl.load(grad_ptr + head * grad_head_stride * UNIT, mask=mask, other=0.0).to(tl.float32)
        if PAIRS is not None:
            grad = grad * cos - _partners(grad * sin, PAIRS, BLOCK, BLOCK_D)
        if NORM is not None:
            x = tl.load(x_ptr + head * head_stride * UNIT, mask=mask, other=0.0).to(tl.float32)
            y, rstd = _normalized(x, mask, eps, NORM, D)
            dweight += grad * y
            dbias += grad
            dy = grad * weight
            grad = dy - y * (tl.sum(dy * y, 1) / D)[:, None]
            if NORM == "layer":
                grad -= (tl.sum(dy, 1) / D)[:, None]
            grad *= rstd
        tl.store(grad_ptr + head * grad_head_stride * UNIT, grad.to(grad_ptr.dtype.element_ty), mask=mask)
    if NORM is not None:
        share = grad_parts + (part * tl.cdiv(rows, BLOCK) + block).to(tl.int64) * 2 * D + channel
        tl.store(share, tl.sum(dweight, 0), mask=exists)
        tl.store(share + D, tl.sum(dbias, 0), mask=exists)
