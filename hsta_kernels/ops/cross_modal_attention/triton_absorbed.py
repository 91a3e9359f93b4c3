# mypy: allow-incomplete-defs, no-check-untyped-defs
"""Absorbed attention in Triton, forward and backward.

Rows are the query token and the N tokens, x_j; y_j = (x_j - mean_j) / sqrt(var_j + eps). For every head

    z_h = Σ_j softmax_j(u_h · y_j) y_j.

One program takes a run of rows of one sample, a block at a time, with all heads at once: a block is normalized in
registers, and the products with it are the matrix units' work. A program may take several runs and adds up their
results; what several programs of a sample have, a second kernel adds up in the same fixed order.

A tile of rows is held in two pieces of A and B columns, powers of 2, so that C = 768 = 512 + 256 wastes nothing. A
piece is (SPLIT, rows, columns / SPLIT). Where the matrix units multiply, a warp has one share of the columns, and the
same share of u and z. Float32 has none to multiply exactly and rows too long for a tile: a row is taken at a time, by
shares as wide as a warp loads, and the warps divide the heads among them, each with all columns of its heads' u and z.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hsta_kernels.ops.launch.triton_chain import enter_chain

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _piece(offsets, valid, FIRST: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of COLUMNS columns from FIRST on of the rows at `offsets`, and which of them exist."""
    width: tl.constexpr = COLUMNS // SPLIT
    columns = FIRST + tl.arange(0, SPLIT)[:, None] * width + tl.arange(0, width)[None, :]
    mask = valid[None, :, None]
    if FIRST + COLUMNS > C:
        mask = mask & (columns < C)[:, None, :]
    return offsets.to(tl.int64)[None, :, None] + columns[:, None, :], mask


@triton.jit
def _load(
    base, offsets, valid,
    C: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SPLIT_A: tl.constexpr, SPLIT_B: tl.constexpr,
):  # fmt: skip
    """Both pieces of the rows at `offsets` from `base`; zero where a row is not `valid` and past column C."""
    offsets_a, mask_a = _piece(offsets, valid, 0, C, SPLIT_A, A)
    offsets_b, mask_b = _piece(offsets, valid, A, C, SPLIT_B, B)
    return tl.load(base + offsets_a, mask=mask_a, other=0.0), tl.load(base + offsets_b, mask=mask_b, other=0.0)


@triton.jit
def _store_piece(
    rows, base, offsets, valid, FIRST: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr, COLUMNS: tl.constexpr
):
    offsets, mask = _piece(offsets, valid, FIRST, C, SPLIT, COLUMNS)
    tl.store(base + offsets, rows.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _store(
    a, b, base, offsets, valid,
    C: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SPLIT_A: tl.constexpr, SPLIT_B: tl.constexpr,
):  # fmt: skip
    _store_piece(a, base, offsets, valid, 0, C, SPLIT_A, A)
    _store_piece(b, base, offsets, valid, A, C, SPLIT_B, B)


@triton.jit
def _sum(a, b):
    """The sum over a row's columns, (rows,)."""
    a, b = tl.sum(a, 2), tl.sum(b, 2)
    if a.shape[0] == b.shape[0]:
        return tl.sum(a + b, 0)  # warps wait for each other once
    else:
        return tl.sum(a, 0) + tl.sum(b, 0)


@triton.jit
def _row_offsets(row, query_distance, token_stride, UNIT: tl.constexpr):
    """Where the rows `row` of [query, tokens] lie, from the first token; the query row is in another tensor."""
    return tl.where(row == 0, query_distance, (row - 1).to(tl.int64) * token_stride) * UNIT


@triton.jit
def _normalized(
    tokens, offsets, valid, eps,
    C: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SPLIT_A: tl.constexpr, SPLIT_B: tl.constexpr,
):  # fmt: skip
    """y, in the tokens' dtype, and 1 / sqrt(var + eps) of the rows at `offsets`."""
    a, b = _load(tokens, offsets, valid, C, A, B, SPLIT_A, SPLIT_B)
    dtype = a.dtype
    a, b = a.to(tl.float32), b.to(tl.float32)
    mean = (_sum(a, b) / C)[None, :, None]
    a, b = a - mean, b - mean
    if A + B > C:
        _, mask_a = _piece(offsets, valid, 0, C, SPLIT_A, A)
        _, mask_b = _piece(offsets, valid, A, C, SPLIT_B, B)
        a, b = tl.where(mask_a, a, 0.0), tl.where(mask_b, b, 0.0)
    rstd = 1 / tl.sqrt(_sum(a * a, b * b) / C + eps)
    return (a * rstd[None, :, None]).to(dtype), (b * rstd[None, :, None]).to(dtype), rstd


@triton.jit
def _shares(heads_a, heads_b, y_a, y_b, PRECISION: tl.constexpr):
    """What each share of the columns adds to heads · y, (SPLIT, heads, rows)."""
    shares = tl.dot(heads_a, tl.permute(y_a, (0, 2, 1)), input_precision=PRECISION)
    return tl.dot(heads_b, tl.permute(y_b, (0, 2, 1)), shares, input_precision=PRECISION)


@triton.jit
def _scores(heads_a, heads_b, y_a, y_b, PRECISION: tl.constexpr):
    """heads · y, (heads, rows)."""
    if y_a.shape[1] == 1:
        scores = tl.sum(tl.sum(heads_a * y_a, 0), 1) + tl.sum(tl.sum(heads_b * y_b, 0), 1)
        scores = scores[:, None]
    else:
        scores = tl.sum(_shares(heads_a, heads_b, y_a, y_b, PRECISION), 0)
    return scores


@triton.jit
def _scores_of_two(u_a, u_b, dz_a, dz_b, y_a, y_b, PRECISION: tl.constexpr):
    """u · y and dz · y; where shares are added up across warps, these wait for each other once for both."""
    if y_a.shape[1] == 1:
        s, dp = _scores(u_a, u_b, y_a, y_b, PRECISION), _scores(dz_a, dz_b, y_a, y_b, PRECISION)
    else:
        of_u, of_dz = _shares(u_a, u_b, y_a, y_b, PRECISION), _shares(dz_a, dz_b, y_a, y_b, PRECISION)
        s, dp = tl.split(tl.sum(tl.join(of_u, of_dz), 0))
    return s, dp


@triton.jit
def _weighted(weights, rows, to, PRECISION: tl.constexpr):
    """to + weights · rows for a piece; every share of the columns takes the same weights."""
    weights = weights[None, :, :]
    if rows.shape[1] == 1:
        to += weights * rows
    else:
        weights = tl.broadcast_to(weights, (rows.shape[0], weights.shape[1], weights.shape[2]))
        to = tl.dot(weights, rows, to, input_precision=PRECISION)
    return to


@triton.jit
def _row_gradients(p, dz, ds, u, PRECISION: tl.constexpr):
    """dy = pᵀ · dz + dsᵀ · u for a piece."""
    if p.shape[1] == 1:
        dy = tl.sum(p[None, :, :] * dz + ds[None, :, :] * u, 1)[:, None, :]
    else:
        dy = tl.zeros((dz.shape[0], p.shape[1], dz.shape[2]), tl.float32)
        dy = _weighted(tl.trans(ds), u, _weighted(tl.trans(p), dz, dy, PRECISION), PRECISION)
    return dy


@triton.jit
def _added(m, l, new_m, new_l):
    """Maximum and sum of a softmax over more rows, and what the sums weighted by either part's are multiplied with."""
    top = tl.maximum(m, new_m)
    share, new_share = tl.exp2(m - top), tl.exp2(new_m - top)
    return top, l * share + new_l * new_share, share, new_share


@triton.jit(do_not_specialize=["runs"])
def absorbed_forward(
    u, tokens, z_parts, stat_parts,
    query_distance: tl.int64, query_stride: tl.int64, sample_stride: tl.int64, token_stride: tl.int64,
    N, H, programs_of_sample, runs, rows_per_run, eps,
    C: tl.constexpr, BLOCK_H: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SPLIT_A: tl.constexpr,
    SPLIT_B: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    enter_chain(CHAINED)
    program = tl.program_id(0).to(tl.int64)  # (sample, some of its runs)
    sample, run = program // programs_of_sample, (program % programs_of_sample).to(tl.int32) * runs
    query_distance += sample * (query_stride - sample_stride)
    tokens += sample * sample_stride * UNIT
    dtype = tokens.dtype.element_ty
    heads = tl.arange(0, BLOCK_H)
    u_a, u_b = _load(u + sample * H * C, heads * C, heads < H, C, A, B, SPLIT_A, SPLIT_B)
    u_a, u_b = u_a.to(dtype), u_b.to(dtype)
    m = tl.full((BLOCK_H,), -float("inf"), tl.float32)
    l = tl.zeros((BLOCK_H,), tl.float32)
    z_a = tl.zeros((SPLIT_A, BLOCK_H, A // SPLIT_A), tl.float32)
    z_b = tl.zeros((SPLIT_B, BLOCK_H, B // SPLIT_B), tl.float32)
    begin, end = run * rows_per_run, tl.minimum((run + runs) * rows_per_run, N + 1)
    for first in range(begin, end, rows_per_run):
        last = tl.minimum(first + rows_per_run, end)
        run_m = tl.full((BLOCK_H,), -float("inf"), tl.float32)
        run_l = tl.zeros((BLOCK_H,), tl.float32)
        run_a = tl.zeros((SPLIT_A, BLOCK_H, A // SPLIT_A), tl.float32)
        run_b = tl.zeros((SPLIT_B, BLOCK_H, B // SPLIT_B), tl.float32)
        for start in tl.range(first, last, BLOCK, num_stages=STAGES):
            row = start + tl.arange(0, BLOCK)
            offsets = _row_offsets(row, query_distance, token_stride, UNIT)
            y_a, y_b, _ = _normalized(tokens, offsets, row < last, eps, C, A, B, SPLIT_A, SPLIT_B)
            s = tl.where((row < last)[None, :], _scores(u_a, u_b, y_a, y_b, PRECISION) * LOG2E, -float("inf"))
            new_m = tl.maximum(run_m, tl.max(s, 1))
            p = tl.exp2(s - new_m[:, None])
            correction = tl.exp2(run_m - new_m)
            run_l = run_l * correction + tl.sum(p, 1)
            p = p.to(dtype)
            run_a = _weighted(p, y_a, run_a * correction[None, :, None], PRECISION)
            run_b = _weighted(p, y_b, run_b * correction[None, :, None], PRECISION)
            run_m = new_m
        m, l, share, run_share = _added(m, l, run_m, run_l)
        share, run_share = share[None, :, None], run_share[None, :, None]
        z_a = z_a * share + run_a * run_share
        z_b = z_b * share + run_b * run_share
    total = tl.where(programs_of_sample == 1, l, 1.0)[None, :, None]  # else merge_z divides
    _store(z_a / total, z_b / total, z_parts + program * H * C, heads * C, heads < H, C, A, B, SPLIT_A, SPLIT_B)
    tl.store(stat_parts + (program * H + heads) * 2, m, mask=heads < H)
    tl.store(stat_parts + (program * H + heads) * 2 + 1, l, mask=heads < H)


@triton.jit(do_not_specialize=["parts_of_group"])
def merge_z(z_parts, stat_parts, z, stats, H, C, parts, parts_of_group, BLOCK_C: tl.constexpr, CHAINED: tl.constexpr):
    """One head's z and statistics from those of its parts: first those of a group, as a program with several runs does,
    then those of the groups."""
    enter_chain(CHAINED)
    program = tl.program_id(0).to(tl.int64)  # (sample, head)
    head, sample = program % H, program // H
    columns = tl.arange(0, BLOCK_C)
    m = tl.full((), -float("inf"), tl.float32)
    l = tl.zeros((), tl.float32)
    values = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, parts, parts_of_group):
        group_m = tl.full((), -float("inf"), tl.float32)
        group_l = tl.zeros((), tl.float32)
        group = tl.zeros((BLOCK_C,), tl.float32)
        for part in range(first, tl.minimum(first + parts_of_group, parts)):
            place = (sample * parts + part) * H + head
            new = tl.load(z_parts + place * C + columns, mask=columns < C, other=0.0)
            new_m, new_l = tl.load(stat_parts + place * 2), tl.load(stat_parts + place * 2 + 1)
            group_m, group_l, old_share, new_share = _added(group_m, group_l, new_m, new_l)
            group = group * old_share + new * new_share
        m, l, old_share, new_share = _added(m, l, group_m, group_l)
        values = values * old_share + group * new_share
    tl.store(z + program * C + columns, values / l, mask=columns < C)
    tl.store(stats + program * 2, m)
    tl.store(stats + program * 2 + 1, l)


@triton.jit(do_not_specialize=["runs"])
def absorbed_backward(
    grad_z, u, tokens, z, stats, grad_u_parts, grad_tokens,
    grad_distance: tl.int64, width: tl.int64,
    query_distance: tl.int64, query_stride: tl.int64, sample_stride: tl.int64, token_stride: tl.int64,
    N, H, programs_of_sample, runs, rows_per_run, eps,
    C: tl.constexpr, BLOCK_H: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SPLIT_A: tl.constexpr,
    SPLIT_B: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    enter_chain(CHAINED)
    program = tl.program_id(0).to(tl.int64)
    sample, run = program // programs_of_sample, (program % programs_of_sample).to(tl.int32) * runs
    query_distance += sample * (query_stride - sample_stride)
    tokens += sample * sample_stride * UNIT
    grad_distance += sample * (width - N * width)
    grad_tokens += sample * N * width * UNIT
    dtype = tokens.dtype.element_ty
    heads = tl.arange(0, BLOCK_H)
    u_a, u_b = _load(u + sample * H * C, heads * C, heads < H, C, A, B, SPLIT_A, SPLIT_B)
    dz_a, dz_b = _load(grad_z + sample * H * C, heads * C, heads < H, C, A, B, SPLIT_A, SPLIT_B)
    z_a, z_b = _load(z + sample * H * C, heads * C, heads < H, C, A, B, SPLIT_A, SPLIT_B)
    delta = _sum(dz_a * z_a, dz_b * z_b)
    u_a, u_b, dz_a, dz_b = u_a.to(dtype), u_b.to(dtype), dz_a.to(dtype), dz_b.to(dtype)
    sum_u = _sum(u_a.to(tl.float32), u_b.to(tl.float32))
    sum_dz = _sum(dz_a.to(tl.float32), dz_b.to(tl.float32))
    m = tl.load(stats + (sample * H + heads) * 2, mask=heads < H, other=0.0)
    inverse_l = tl.div_rn(1.0, tl.load(stats + (sample * H + heads) * 2 + 1, mask=heads < H, other=1.0))
    grad_u_parts += program * H * C
    begin, end = run * rows_per_run, tl.minimum((run + runs) * rows_per_run, N + 1)
    for first in range(begin, end, rows_per_run):
        last = tl.minimum(first + rows_per_run, end)
        du_a = tl.zeros((SPLIT_A, BLOCK_H, A // SPLIT_A), tl.float32)
        du_b = tl.zeros((SPLIT_B, BLOCK_H, B // SPLIT_B), tl.float32)
        for start in tl.range(first, last, BLOCK, num_stages=STAGES):
            row = start + tl.arange(0, BLOCK)
            offsets = _row_offsets(row, query_distance, token_stride, UNIT)
            y_a, y_b, rstd = _normalized(tokens, offsets, row < last, eps, C, A, B, SPLIT_A, SPLIT_B)
            s, dp = _scores_of_two(u_a, u_b, dz_a, dz_b, y_a, y_b, PRECISION)
            p = tl.exp2(s * LOG2E - m[:, None]) * inverse_l[:, None]
            p = tl.where((row < last)[None, :], p, 0.0)
            ds = (p * (dp - delta[:, None])).to(dtype)
            p = p.to(dtype)
            # LayerNorm's backward: what dy has along y and along the constant vector changes nothing. Both follow from
            # the heads' products with y and their sums, without dy.
            weight, of_score = p.to(tl.float32), ds.to(tl.float32)
            along_y = tl.sum(weight * dp + of_score * s, 0) / C
            along_one = tl.sum(weight * sum_dz[:, None] + of_score * sum_u[:, None], 0) / C
            slope, level = (-along_y * rstd)[None, :, None], (-along_one * rstd)[None, :, None]
            rstd = rstd[None, :, None]
            offsets = _row_offsets(row, grad_distance, width, UNIT)
            dy = _row_gradients(p, dz_a, ds, u_a, PRECISION)
            dx = tl.fma(dy, rstd, tl.fma(y_a.to(tl.float32), slope, level))
            _store_piece(dx, grad_tokens, offsets, row < last, 0, C, SPLIT_A, A)
            dy = _row_gradients(p, dz_b, ds, u_b, PRECISION)
            dx = tl.fma(dy, rstd, tl.fma(y_b.to(tl.float32), slope, level))
            _store_piece(dx, grad_tokens, offsets, row < last, A, C, SPLIT_B, B)
            du_a = _weighted(ds, y_a, du_a, PRECISION)  # last: fewer registers are in use
            du_b = _weighted(ds, y_b, du_b, PRECISION)
        # The sum over the program's runs lies in memory: with the run's, it is more than the registers hold.
        # Adding 0 in this way keeps the compiler from holding addresses in registers from the first run on.
        offsets = heads * C + tl.minimum(first, 0)
        summed = tl.where(first > begin, H, 0)
        sum_a, sum_b = _load(grad_u_parts, offsets, heads < summed, C, A, B, SPLIT_A, SPLIT_B)
        _store(sum_a + du_a, sum_b + du_b, grad_u_parts, offsets, heads < H, C, A, B, SPLIT_A, SPLIT_B)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["parts_of_group"])
def sum_parts(parts_of_u, total, size, parts, parts_of_group, BLOCK: tl.constexpr, CHAINED: tl.constexpr):
    """total (B, size) from parts_of_u (B, parts, size), in the order of `merge_z`."""
    enter_chain(CHAINED)
    blocks = tl.cdiv(size, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    sample, column = program // blocks, program % blocks * BLOCK + tl.arange(0, BLOCK)
    values = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, parts, parts_of_group):
        group = tl.zeros((BLOCK,), tl.float32)
        for part in range(first, tl.minimum(first + parts_of_group, parts)):
            group += tl.load(parts_of_u + (sample * parts + part) * size + column, mask=column < size, other=0.0)
        values += group
    tl.store(total + sample * size + column, values, mask=column < size)
