"""Launches of the Triton kernels of space-time attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hsta_kernels.ops.launch import contiguous_like, current_device
from hsta_kernels.ops.launch.triton import (
    configuration,
    configured,
    dropout_arguments,
    in_two_parts,
    in_units,
    new_chain,
    power_of_2,
    precision,
    registers_first,
)
from hsta_kernels.ops.launch.triton import refuse as refuse_tensor
from hsta_kernels.ops.space_time_attention.grid import Grid
from hsta_kernels.ops.space_time_attention.operands import NOTHING, Operands

# Partial results of a prefix row that are merged at a time, and no more elements of them than registers hold.
_MERGED_SPLITS, _MERGED = 32, 4096
_PREPARED = 2048  # elements of q or k that a program normalizes and rotates at a time
_MAX_HEAD_DIM_OF_AMD = 128  # the tiles of wider ones take more than a gfx942's 64 KiB of shared memory


class Groups(NamedTuple):
    """Member j of group g is token first + prefix + g*group_step + j*member_step.

    The kernels do not know the tokens before `first`, which take no part: they are given pointers to it. `mean` says
    that prefix queries have a softmax in each group.
    """

    first: int
    mean: bool
    prefix: int
    groups: int
    members: int
    group_step: int
    member_step: int

    @classmethod
    def of(cls, grid: Grid) -> Groups:
        first = grid.num_prefix_tokens if grid.prefix == "none" else 0
        prefix = grid.num_prefix_tokens - first
        frame_step, position_step = grid.num_patches, 1
        if grid.token_order == "patch_major":
            frame_step, position_step = 1, grid.num_frames
        if grid.axis == "time":
            return cls(first, False, prefix, grid.num_patches, grid.num_frames, position_step, frame_step)
        if grid.axis == "space":
            mean = grid.prefix == "frame_mean" and prefix > 0
            return cls(first, mean, prefix, grid.num_frames, grid.num_patches, frame_step, position_step)
        return cls(first, False, 0, 1, prefix + grid.num_frames * grid.num_patches, 0, 1)

    def tail(self, block: int) -> int:
        """Rows of the tiles that take what full tiles of `block` patches leave of a group; 0 if nothing is left.

        No more than half of a full tile: the masks that a tail needs take registers.
        """
        left = self.members % block + self.prefix
        return max(16, min(block // 2, power_of_2(left))) if left else 0

    def tiles(self, config: dict[str, Any]) -> int:
        """How many full tiles and tails a group comes in."""
        full = self.members // config["BLOCK_M"] if config["BLOCK_M"] else 0
        left = self.members + self.prefix - full * config["BLOCK_M"]
        return full + (-(-left // config["TAIL_M"]) if left else 0)


def refuse(qkv: Sequence[torch.Tensor], grid: Grid) -> str | None:
    if grid.biased:
        return "bias is given; the kernels add none to the scores"
    head_dim = qkv[0].shape[-1]
    if torch.version.hip is not None and head_dim > _MAX_HEAD_DIM_OF_AMD:
        return f"qkv has a head_dim of {head_dim}; on AMD's GPUs the kernels take up to {_MAX_HEAD_DIM_OF_AMD}"
    return refuse_tensor("qkv", qkv[0], "flash_backward_kv")


def stats_shape(qkv: Sequence[torch.Tensor], grid: Grid) -> tuple[int, ...]:
    """(B, H, L, 2), maximum and inverse sum: tiles of keys come one after the other, no row is at hand at once.

    Prefix queries whose outputs are averaged have theirs in each frame, (B, H, L + T·P, 2).
    """
    rows = qkv[0].shape[1] + (grid.num_frames * grid.num_prefix_tokens if grid.prefix == "frame_mean" else 0)
    return qkv[0].shape[0], qkv[0].shape[-2], rows, 2


def forward(
    qkv: Sequence[torch.Tensor],
    grid: Grid,
    operands: Operands = NOTHING,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    from hsta_kernels.ops.space_time_attention.triton_flash import flash_forward
    from hsta_kernels.ops.space_time_attention.triton_tile import mean_prefix, merge_prefix
    from hsta_kernels.ops.space_time_attention.triton_time import time_forward

    q, k, v = _parts(qkv)
    if (grid.rotary_pairs or grid.qk_norm) and q.numel():
        return forward(_prepared(qkv, grid, operands), _plain(grid), Operands(operands.seed), out)
    batch, length, heads, head_dim = q.shape
    out = q.new_empty(q.shape) if out is None else out
    stats = q.new_empty(stats_shape(qkv, grid), dtype=torch.float32)
    if not q.numel():
        return out, stats
    groups = Groups.of(grid)
    first, rows = groups.first, [q, k, v, out, stats]
    if first:
        out[:, :first] = v[:, :first]
        rows = [*_after(first, rows[:4]), stats[:, :, first:]]
    strides, unit = in_units(q.stride()[:3])
    columns = _columns(head_dim)
    common = {"P": groups.prefix, **columns, "UNIT": unit, "PRECISION": precision(q.dtype)}
    factors = (*in_two_parts(grid.scale * math.log2(math.e)), *dropout_arguments(grid.dropout_rate, operands.seed))
    tile = _time_tile("time_forward", q, groups, grid)
    splits = -(-groups.groups // tile["PACK"]) if tile else groups.groups
    partial_shape = (batch, heads, groups.prefix, splits)
    values = q.new_empty((*partial_shape, head_dim), dtype=torch.float32)
    partial_stats = q.new_empty((*partial_shape, 2), dtype=torch.float32)
    chain = new_chain(q.device, alone=not groups.prefix)
    with current_device(q):
        if tile:
            time_forward[(batch * splits * heads,)](
                *rows, values, partial_stats, *strides, groups.groups, *groups[5:], length, heads, *factors,
                **common, **tile, **next(chain),
            )  # fmt: skip
        else:
            config = _flash_tiles("flash_forward", q, groups)
            flash_forward[(batch * splits * heads * groups.tiles(config),)](
                *rows, values, partial_stats, *strides, *groups[3:], length, heads, *factors,
                **common, MEAN=groups.mean, **config, **next(chain),
            )  # fmt: skip
        merging = {
            "P": groups.prefix,
            "BLOCK": min(_MERGED_SPLITS, _MERGED // columns["BLOCK_D"]),
            **columns,
            "enable_fp_fusion": False,
            **registers_first(),
        }
        if groups.mean:
            mean_prefix[(batch * heads * groups.prefix,)](values, out, splits, length, heads, **merging, **next(chain))
        elif groups.prefix:
            merge_prefix[(batch * heads * groups.prefix,)](
                values, partial_stats, out, stats, splits, length, heads, **merging, **next(chain)
            )
    return out, stats


def backward(
    grad_out: torch.Tensor,
    qkv: Sequence[torch.Tensor],
    out: torch.Tensor,
    stats: torch.Tensor,
    grid: Grid,
    operands: Operands = NOTHING,
    grad_bias: torch.Tensor | None = None,
    grads: tuple[torch.Tensor, ...] | None = None,
) -> tuple[torch.Tensor, ...]:
    from hsta_kernels.ops.space_time_attention.triton_flash_backward import flash_backward_kv, flash_backward_q
    from hsta_kernels.ops.space_time_attention.triton_group_backward import group_backward
    from hsta_kernels.ops.space_time_attention.triton_tile import sum_prefix
    from hsta_kernels.ops.space_time_attention.triton_time import time_backward

    grads = tuple(map(contiguous_like, qkv)) if grads is None else grads
    if not out.numel():
        return grads if operands.affine is None else (*grads, torch.zeros_like(operands.affine))
    if grid.rotary_pairs or grid.qk_norm:
        prepared = _prepared(qkv, grid, operands)
        backward(grad_out, prepared, out, stats, _plain(grid), Operands(operands.seed), None, grads)
        return *grads, *_undo(grads, qkv, grid, operands)
    batch, length, heads, head_dim = out.shape
    groups, deltas = Groups.of(grid), stats.shape[:3]
    first = groups.first
    do, o, (q, k, v), (dq, dk, dv) = grad_out, out, _parts(qkv), grads[0].unbind(2) if len(grads) == 1 else grads
    if first:
        dq[:, :first], dk[:, :first], dv[:, :first] = 0, 0, do[:, :first]
        do, o, q, k, v, dq, dk, dv = _after(first, (do, o, q, k, v, dq, dk, dv))
        stats = stats[:, :, first:]
    strides, unit = in_units(q.stride()[:3])
    grad_strides, grad_unit = in_units(grad_out.stride()[:3])
    parts, columns = 3 // len(grads), _columns(head_dim)
    common = {
        "P": groups.prefix, **columns, "UNIT": unit, "GRAD_UNIT": grad_unit, "PARTS": parts,
        "PRECISION": precision(q.dtype),
    }  # fmt: skip
    factors = (
        *in_two_parts(grid.scale * math.log2(math.e)),
        grid.scale,
        *dropout_arguments(grid.dropout_rate, operands.seed),
    )
    tile = _time_tile("time_backward", q, groups, grid)
    splits = -(-groups.groups // tile["PACK"]) if tile else groups.groups
    partial_grads = q.new_empty((batch, 3, heads, groups.prefix, splits, head_dim), dtype=torch.float32)
    chain = new_chain(q.device, alone=tile is not None and not groups.prefix)
    with current_device(q):
        if tile:
            time_backward[(batch * splits * heads,)](
                do, q, k, v, o, stats, dq, dk, dv, partial_grads, *grad_strides, *strides,
                groups.groups, *groups[5:], length, heads, *factors, **common, **tile, **next(chain),
            )  # fmt: skip
        elif whole := _group_tile(q, groups, grid):
            group_backward[(batch * splits * heads,)](
                do, q, k, v, o, stats, dq, dk, dv, partial_grads, *grad_strides, *strides,
                *groups[3:], length, heads, *factors[:3], **common, **whole, **next(chain),
            )  # fmt: skip
        else:
            delta = q.new_empty(deltas, dtype=torch.float32)
            common["MEAN"] = groups.mean
            sizes = (*grad_strides, *strides, *groups[3:], length, heads, *factors)
            halved = operands.seed is not None
            config = _flash_tiles("flash_backward_q", q, groups, halved)
            flash_backward_q[(batch * splits * heads * groups.tiles(config),)](
                do, q, k, v, o, stats, delta, dq, partial_grads, *sizes, **common, **config, **next(chain)
            )
            config = _flash_tiles("flash_backward_kv", q, groups, halved)
            flash_backward_kv[(batch * splits * heads * groups.tiles(config),)](
                do, q, k, v, stats, delta, dk, dv, partial_grads, *sizes, **common, **config, **next(chain)
            )
        if groups.prefix:
            sum_prefix[(batch * 3 * heads * groups.prefix,)](
                partial_grads, dq, dk, dv, splits, length, heads,
                P=groups.prefix, BLOCK=min(_MERGED_SPLITS, _MERGED // columns["BLOCK_D"]), PARTS=parts, **columns,
                enable_fp_fusion=False, **next(chain),
            )  # fmt: skip
    return grads


def _after(first: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor[:, first:] for tensor in tensors]


def _parts(qkv: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """q, k and v in one layout: where three tensors have not the same strides, copies have.

    Offsets in rows are then computed once for all three, and so they take no more registers than those of a packed
    tensor. Models' projections lay out all three alike.
    """
    if len(qkv) == 1:
        return qkv[0].unbind(2)
    if qkv[0].stride() == qkv[1].stride() == qkv[2].stride():
        return qkv
    return [part.contiguous() for part in qkv]


def _plain(grid: Grid) -> Grid:
    """What is left to do with prepared rows."""
    return grid._replace(rotary_pairs=None, qk_norm=None)


def _prepared(qkv: Sequence[torch.Tensor], grid: Grid, operands: Operands) -> list[torch.Tensor]:
    """q and k normalized and rotated, and v, all in the layout of v; where that has gaps, v is a copy without.

    A packed v is so read where it lies, by the memory that a copy of it would take. Tokens that take no part are left
    out.
    """
    from hsta_kernels.ops.space_time_attention.triton_rows import normalize_and_rotate

    q, k, v = _parts(qkv)
    like = torch.empty_like(qkv[0]).unbind(2) if len(qkv) == 1 else [torch.empty_like(v) for _ in qkv]
    prepared = [*like[:2], v if v.stride() == like[2].stride() else like[2].copy_(v)]
    first = Groups.of(grid).first
    rows, outs = _after(first, (q, k)), _after(first, prepared[:2])
    programs, sizes, options = _rows_arguments(rows[0], outs[0], grid)
    with current_device(q):
        normalize_and_rotate[(programs,)](*rows, *outs, *_shared(operands, first), *sizes, **options)
    return prepared


def _undo(
    grads: Sequence[torch.Tensor], qkv: Sequence[torch.Tensor], grid: Grid, operands: Operands
) -> tuple[torch.Tensor, ...]:
    """Takes the gradients of q and k, in place, from the rows of `_prepared` to those of `qkv`; returns affine's."""
    from hsta_kernels.ops.space_time_attention.triton_rows import normalize_and_rotate_backward

    first = Groups.of(grid).first
    q, k, dq, dk = _after(first, (*_parts(qkv)[:2], *_parts(grads)[:2]))
    programs, sizes, options = _rows_arguments(q, dq, grid)
    parts = None if operands.affine is None else q.new_empty((2, programs // 2, 2, q.shape[-1]), dtype=torch.float32)
    with current_device(q):
        normalize_and_rotate_backward[(programs,)](q, k, dq, dk, *_shared(operands, first), parts, *sizes, **options)
    return () if parts is None else (parts.sum(1),)


def _rows_arguments(
    rows: torch.Tensor, others: torch.Tensor, grid: Grid
) -> tuple[int, tuple[Any, ...], dict[str, Any]]:
    """Programs, sizes and options of a kernel that reads `rows` and reads or writes `others`."""
    batch, tokens, heads, head_dim = rows.shape
    strides, unit = in_units((*rows.stride()[:3], *others.stride()[:3]))
    columns = _columns(head_dim)
    block = _PREPARED // columns["BLOCK_D"]
    choices = {"PAIRS": grid.rotary_pairs, "NORM": grid.qk_norm}
    options = {**choices, **columns, "BLOCK": block, "UNIT": unit, "enable_fp_fusion": False}
    return 2 * -(-batch * tokens // block), (*strides, tokens, batch * tokens, heads, grid.qk_norm_eps), options


def _shared(operands: Operands, first: int) -> tuple[torch.Tensor | None, ...]:
    """cos, sin and affine as the kernels read them, of the tokens that take part."""
    cos, sin = (table[first:].contiguous() for table in operands.rotary) if operands.rotary else (None, None)
    return cos, sin, None if operands.affine is None else operands.affine.contiguous()


def _columns(head_dim: int) -> dict[str, int]:
    return {"D": head_dim, "BLOCK_D": max(16, power_of_2(head_dim))}


def _time_tile(kernel: str, rows: torch.Tensor, groups: Groups, grid: Grid) -> dict[str, Any] | None:
    """How to tile attention over time: PACK sequences and the prefix in ROWS rows.

    Without a prefix, which every tile loads and leaves gradients for, up to 16 rows take the tile of the fewest frames:
    in a larger one most products are of rows that do not see each other.

    None when a sequence is too long for one tile, or lies along another axis. With dropout one of more than 32
    rows is: its mask takes more registers than there are.
    """
    sequence = groups.members + groups.prefix
    if not groups.prefix and sequence <= 16:
        sequence = min(sequence, 4)
    if grid.axis != "time" or (grid.dropout_rate and sequence > 32):
        return None
    if not configured(kernel, rows, rows.shape[-1], sequence):
        return None
    config = configuration(kernel, rows, rows.shape[-1], sequence)
    return config | {"T": groups.members, "PACK": (config["ROWS"] - groups.prefix) // groups.members}


def _group_tile(rows: torch.Tensor, groups: Groups, grid: Grid) -> dict[str, Any] | None:
    """How to tile the backward pass of groups that a program holds whole.

    None where the table has no tile so long: then two kernels compute the scores twice. So they do where prefix queries
    have a softmax in each group, whose δ comes from the keys, and with dropout, whose mask takes the registers that the
    rows need. Heads of up to 32 elements make products of fewer rows than instructions of four warps have.
    """
    head_dim, sequence = rows.shape[-1], groups.members + groups.prefix
    if groups.mean or grid.dropout_rate or _columns(head_dim)["BLOCK_D"] < 64:
        return None
    if not configured("group_backward", rows, head_dim, sequence):
        return None
    config = configuration("group_backward", rows, head_dim, sequence)
    return config | {"TAIL_N": groups.tail(config["BLOCK_N"])}


def _flash_tiles(kernel: str, rows: torch.Tensor, groups: Groups, halved: bool = False) -> dict[str, Any]:
    """Short groups are all tail, as the table says: BLOCK_M is 0.

    `halved` tiles leave the registers that dropout takes where all of them are taken without it.
    """
    config = configuration(kernel, rows, rows.shape[-1], groups.members)
    if halved:
        config["BLOCK_N"] = max(16, config["BLOCK_N"] // 2)
    tail = groups.tail(config["BLOCK_M"]) if config["BLOCK_M"] else config["TAIL_M"]
    return config | {"TAIL_M": tail, "TAIL_N": groups.tail(config["BLOCK_N"])}
