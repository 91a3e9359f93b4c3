"""What each Triton kernel moves and multiplies, counted from its launch: see the kernels in `hsta_kernels/ops`.

Bytes are counted twice. Between memory and the chip each tensor counts once a kernel, whoever rereads it, for the tiles
that share it run at the same time; between L2 and the multiprocessors everything that every program loads and stores.
Partial results that the next kernel reads are small and stay in L2, a LayerNorm's weights and a bias in L1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from tools.ahead_of_time import Launch


@dataclass
class Way:
    """A path through a kernel's code: the share of programs that take it, and the turns of each loop on it."""

    share: float = 1
    trips: tuple[float, ...] = ()


@dataclass
class Work:
    """Of all programs of a launch together."""

    bytes: float
    l2_bytes: float
    matrix_flops: float = 0  # what is issued, thrown away or not, padded columns too
    warp_matrix_flops: float = 0  # of tiles too small for the instructions of four warps
    reread: float = 0  # bytes that an earlier kernel of the same call has moved, which L2 may still hold
    ways: list[Way] = field(default_factory=lambda: [Way()])  # none: each of the code's, every loop once


def _element(a: SimpleNamespace, tensor: str) -> int:
    return getattr(a, tensor).element_size()


def _multiplied(work: Work, a: SimpleNamespace, flops: float, rows: int) -> None:
    """IEEE float32 is multiplied by ordinary instructions; from sm_90 on, tiles of 64 rows by groups of four warps."""
    if a.dtype == torch.float32:
        return
    if rows >= 64 and a.arch >= 90:
        work.matrix_flops += flops
    else:
        work.warp_matrix_flops += flops


def _time(a: SimpleNamespace, backward: bool) -> Work:
    batch, length, heads, dim = a.q_ptr.shape
    e, splits = _element(a, "q_ptr"), -(-a.N // a.PACK)
    programs = batch * splits * heads
    tokens = batch * length * heads
    rows = programs * (a.PACK * a.T + a.P) - batch * heads * (splits * a.PACK - a.N) * a.T  # loaded
    partial = programs * a.P * (3 * dim * 4 if backward else dim * 4 + 8)
    a_token = (7 if backward else 4) * dim * e + 8  # 8: a row's statistics
    work = Work(tokens * a_token, rows * a_token + partial + (programs * a.P * dim * e if backward else 0))
    products = (5 + (a.P > 0)) if backward else 2
    _multiplied(work, a, programs * products * 2 * a.ROWS**2 * a.BLOCK_D, a.ROWS)
    return work


def _tiles(a: SimpleNamespace) -> list[tuple[int, int]]:
    """(rows, how many) of a group's tiles: full ones and tails."""
    full = a.G // a.BLOCK_M if a.BLOCK_M else 0
    left = a.G + a.P - full * a.BLOCK_M
    return [(a.BLOCK_M, full), (a.TAIL_M, -(-left // a.TAIL_M) if a.TAIL_M and left else 0)]


def _flash(a: SimpleNamespace, products: int, scores: int, own: int, others: int, diagonal: bool = False) -> Work:
    """A tile's own rows stay on chip while those of its whole group pass by: `own` and `others` are bytes a row,
    loaded and stored, of either. `scores` of the products, those of two rows, have an element a pair."""
    batch, length, heads, _ = a.q_ptr.shape
    groups, rows_of_group = batch * a.groups * heads, a.G + a.P
    tiles = [(rows, count) for rows, count in _tiles(a) if rows]  # those in the code, whether or not there are any
    programs = sum(count for _, count in tiles)
    full = a.G // a.BLOCK_N
    tails = -(-(rows_of_group - full * a.BLOCK_N) // a.TAIL_N) if a.TAIL_N else 0
    padded = full * a.BLOCK_N + tails * a.TAIL_N
    work = Work(batch * length * heads * (own + others), groups * rows_of_group * (own + programs * others), ways=[])
    for rows, count in tiles:
        # Four warps multiply 64 rows by wgmma: of a tail with fewer than there could be, two groups multiply the same.
        again = 2 if a.arch == 90 and 64 <= rows < 16 * a.num_warps else 1
        columns = (products + (again - 1) * scores) * padded + (again * rows if diagonal else 0)
        flops = groups * count * columns * 2 * rows * a.BLOCK_D
        _multiplied(work, a, flops, rows)
        work.ways.append(Way(count / programs, (full, tails) if a.TAIL_N else (full,)))
    return work


def _row(a: SimpleNamespace) -> int:
    return a.q_ptr.shape[-1] * _element(a, "q_ptr")


def flash_forward(a: SimpleNamespace) -> Work:
    return _flash(a, products=2, scores=1, own=2 * _row(a) + 8, others=2 * _row(a))


def flash_backward_q(a: SimpleNamespace) -> Work:
    return _flash(a, products=3, scores=2, own=4 * _row(a) + 12, others=2 * _row(a), diagonal=True)


def flash_backward_kv(a: SimpleNamespace) -> Work:
    work = _flash(a, products=4, scores=2, own=4 * _row(a), others=2 * _row(a) + 12)
    work.reread = math.prod(a.q_ptr.shape[:3]) * 4 * _row(a)
    work.bytes -= work.reread
    return work


def group_backward(a: SimpleNamespace) -> Work:
    """Five products of a group's rows with its keys, and one with its outputs for their diagonal."""
    batch, length, heads, _ = a.q_ptr.shape
    full, row = a.G // a.BLOCK_N, 7 * _row(a) + 8
    tails = -(-(a.G + a.P - full * a.BLOCK_N) // a.TAIL_N) if a.TAIL_N else 0
    outputs = -(-(a.G + a.P) // a.BLOCK_N)
    work = Work(batch * length * heads * row, a.programs * (a.G + a.P) * row)
    columns = 5 * (full * a.BLOCK_N + tails * a.TAIL_N) + outputs * a.BLOCK_N
    _multiplied(work, a, a.programs * 2 * a.ROWS * columns * a.BLOCK_D, a.ROWS)
    work.ways = [Way(1, (outputs, full, tails) if a.TAIL_N else (outputs, full))]
    return work


def _small(parts: str) -> Callable[[SimpleNamespace], Work]:
    """A kernel that puts partial results together."""
    return lambda a: Work(0, getattr(a, parts).nbytes, ways=[])


def _absorbed(a: SimpleNamespace, backward: bool) -> Work:
    batch, heads, width = a.u.shape
    e = _element(a, "tokens")
    programs, rows = batch * a.programs_of_sample, batch * (a.N + 1)
    moved = rows * width * e * (2 if backward else 1)
    of_heads = batch * heads * width * 4 * (3 if backward else 1)  # u, and z and its gradient
    parts = (a.grad_u_parts if backward else a.z_parts).nbytes
    runs = -(-(a.N + 1) // a.rows_per_run) / a.programs_of_sample  # of a program, on average
    of_runs = (2 * runs - 1) * parts if backward else parts  # backward, their sum lies in memory
    work = Work(moved + of_heads, moved + a.programs_of_sample * of_heads + of_runs)
    turns = a.rows_per_run // a.BLOCK
    _multiplied(work, a, programs * runs * turns * a.BLOCK * a.BLOCK_H * (a.A + a.B) * 2 * (5 if backward else 2), 16)
    work.ways = [Way(1, (runs * turns,))]  # what comes between runs is counted once
    return work


def _projection(a: SimpleNamespace, weights: int, chunk: int, loops: int) -> Work:
    """Of `weights` matrices; a program multiplies 16 samples with BLOCK_D rows of one, and with a chunk of a second.

    A program reads its samples in each of `loops` loops over the columns, and its rows of the weight in the last.
    Instructions of the matrix unit have 8 columns: where there are more warps than that makes, two do the same.
    """
    e, turns = a.dtype.itemsize, -(-a.C // a.BLOCK_C)
    heads = a.samples * a.H * a.C * 4  # u or z
    of_rows = a.samples * a.C * e  # the queries or the results
    blocks = -(-a.D // a.BLOCK_D) if chunk else 1
    of_program = a.BLOCK_D * (a.C + chunk) * blocks * e
    work = Work(weights * a.C**2 * e + heads + of_rows, a.programs * of_program + heads + of_rows)
    rows, readers = (of_rows, a.H * -(-a.C // chunk)) if chunk else (heads, -(-a.D // a.BLOCK_D))
    work.l2_bytes += (readers * loops - 1) * rows
    # Without a chunk both weights are multiplied in one loop, all of it by each warp.
    issued = max(a.BLOCK_D, 8 * a.num_warps) if chunk or weights == 1 else 2 * a.BLOCK_D * a.num_warps
    _multiplied(work, a, a.programs * blocks * 2 * a.BLOCK * issued * (turns * a.BLOCK_C + chunk), a.BLOCK)
    work.ways = [Way(1, (turns,))]
    return work


def _gradients(a: SimpleNamespace, weights: int, rows: int) -> Work:
    """Of `weights` matrices, each read and its gradient written; a program multiplies a chunk of a head's features with
    one and, the other way round, with a chunk of `rows` rows of all heads (u, z and their gradients), each read or
    written so often, and of the queries."""
    e, blocks = a.dtype.itemsize, -(-a.samples // a.BLOCK)
    matrices, heads, of_rows = 2 * weights * a.C**2 * e, rows * a.samples * a.H * a.C * 4, a.samples * a.C * e
    readers = a.programs // a.H  # of a head's features, twice
    work = Work(matrices + heads + of_rows, matrices + heads + 2 * weights * readers * of_rows)
    flops = weights * a.programs * blocks * 2 * a.BLOCK * -(-a.D // a.BLOCK_D) * a.BLOCK_D * a.CHUNK
    # Where instructions make more than a tile, warps do the same: 8 columns each, as in `_projection`, and on sm_80 16
    # rows each where a loop has two products.
    _multiplied(work, a, flops // a.CHUNK * max(a.CHUNK, 8 * a.num_warps), a.BLOCK)
    rows = max(a.BLOCK_D, 16 * a.num_warps) if weights > 1 and a.arch < 90 else a.BLOCK_D
    _multiplied(work, a, flops // a.BLOCK_D * rows, a.BLOCK_D)
    work.ways = [Way(1, (blocks, blocks))]
    return work


def norm_backward(a: SimpleNamespace) -> Work:
    """All heads' parts of the queries' gradients, by rows and by columns; the loops are those of the columns."""
    parts, of_rows = a.grad_y_parts.nbytes, a.samples * a.C * a.dtype.itemsize
    turns = -(-a.H // a.BLOCK_H)
    work = Work(3 * of_rows, 3 * parts + 5 * of_rows + a.norm_parts.nbytes)
    work.ways = [Way(1, (turns, turns, turns * -(-a.samples // a.BLOCK)))]
    return work


def add_layer_norm_forward(a: SimpleNamespace) -> Work:
    size = a.rows * a.C * _element(a, "residual")
    return Work(4 * size, 4 * size)


def add_layer_norm_backward(a: SimpleNamespace) -> Work:
    size, parts = a.rows * a.C * _element(a, "total"), 2 * a.programs * a.C * 4
    work = Work(4 * size + parts, 4 * size + parts)
    work.ways = [Way(1, (math.ceil(a.rows_per_program / a.BLOCK),))]
    return work


def bias_gelu_forward(a: SimpleNamespace) -> Work:
    size = a.rows * a.C * _element(a, "x")
    return Work(2 * size, 2 * size)


def bias_gelu_backward(a: SimpleNamespace) -> Work:
    size, parts = a.rows * a.C * _element(a, "x"), a.programs * a.BLOCK_C * _element(a, "bias")
    work = Work(3 * size + parts, 3 * size + parts)
    work.ways = [Way(1, (math.ceil(a.rows_per_program / a.BLOCK),))]
    return work


COUNTS: dict[str, Callable[[SimpleNamespace], Work]] = {
    "time_forward": lambda a: _time(a, False),
    "time_backward": lambda a: _time(a, True),
    "flash_forward": flash_forward,
    "flash_backward_q": flash_backward_q,
    "flash_backward_kv": flash_backward_kv,
    "group_backward": group_backward,
    "merge_prefix": _small("partial_values"),
    "mean_prefix": _small("partial_values"),
    "sum_prefix": _small("partial_grads"),
    "absorbed_forward": lambda a: _absorbed(a, False),
    "absorbed_backward": lambda a: _absorbed(a, True),
    "absorb_query": lambda a: _projection(a, weights=2, chunk=a.CHUNK, loops=3),
    "project_values": lambda a: _projection(a, weights=1, chunk=0, loops=1),
    "project_values_backward": lambda a: _gradients(a, weights=1, rows=3),
    "query_backward": lambda a: _projection(a, weights=2, chunk=0, loops=1),
    "absorb_query_backward": lambda a: _gradients(a, weights=2, rows=3),
    "norm_backward": norm_backward,
    "merge_z": _small("z_parts"),
    "sum_parts": _small("parts_of_u"),
    "add_layer_norm_forward": add_layer_norm_forward,
    "add_layer_norm_backward": add_layer_norm_backward,
    "bias_gelu_forward": bias_gelu_forward,
    "bias_gelu_backward": bias_gelu_backward,
}


def work_of(launch: Launch, arch: int) -> Work:
    """Raises KeyError for a kernel that nobody has counted."""
    named = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.options
    tensors = [value for value in launch.arguments if isinstance(value, torch.Tensor)]
    dtype = next((t.dtype for t in tensors if t.dtype != torch.float32), torch.float32)
    return COUNTS[launch.name](SimpleNamespace(**named, programs=launch.programs, arch=arch, dtype=dtype))
