"""Launches of the Triton kernels of space-time attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hsta_kernels.ops.launch import current_device
from hsta_kernels.ops.launch.triton import (
    configuration,
    configured,
    in_two_parts,
    in_units,
    power_of_2,
    precision,
)
from hsta_kernels.ops.launch.triton import refuse as refuse_tensor
from hsta_kernels.ops.space_time_attention.grid import Grid

_MERGED_SPLITS = 32  # partial results of a prefix row that are merged at a time


class Groups(NamedTuple):
    """Member j of group g is token prefix + g*group_step + j*member_step."""

    prefix: int
    groups: int
    members: int
    group_step: int
    member_step: int

    @classmethod
    def of(cls, num_frames: int, num_patches: int, axis: str, num_prefix_tokens: int) -> Groups:
        if axis == "time":
            return cls(num_prefix_tokens, num_patches, num_frames, 1, num_patches)
        if axis == "space":
            return cls(num_prefix_tokens, num_frames, num_patches, num_patches, 1)
        return cls(0, 1, num_prefix_tokens + num_frames * num_patches, 0, 1)

    def tail(self, block: int) -> int:
        """Rows of the tiles that take what full tiles of `block` patches leave of a group; 0 if nothing is left.

        No more than half of a full tile: the masks that a tail needs take registers.
        """
        left = self.members % block + self.prefix
        return max(16, min(block // 2, power_of_2(left))) if left else 0

    def tiles(self, block: int) -> int:
        left = self.members % block + self.prefix
        return self.members // block + (-(-left // self.tail(block)) if left else 0)


def refuse(qkv: Sequence[torch.Tensor], grid: Grid) -> str | None:
    if len(qkv) == 3:
        return "qkv is three tensors; the kernels take a packed one"
    if grid.num_prefix_tokens and grid.prefix != "all":
        return f"prefix is {grid.prefix!r}; the kernels have 'all'"
    if grid.token_order != "time_major" and grid.axis != "joint":
        return f"token_order is {grid.token_order!r}; the kernels take 'time_major'"
    return refuse_tensor("qkv", qkv[0], "flash_backward_kv")


def stats_shape(qkv: Sequence[torch.Tensor], grid: Grid) -> tuple[int, ...]:
    """(B, H, L, 2), maximum and inverse sum: tiles of keys come one after the other, no row is at hand at once."""
    return qkv[0].shape[0], qkv[0].shape[3], qkv[0].shape[1], 2


def forward(packed: Sequence[torch.Tensor], grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    from hsta_kernels.ops.space_time_attention.triton_flash import flash_forward
    from hsta_kernels.ops.space_time_attention.triton_tile import merge_prefix
    from hsta_kernels.ops.space_time_attention.triton_time import time_forward

    (qkv,) = packed
    num_patches, axis, scale = grid.num_patches, grid.axis, grid.scale
    batch, length, _, heads, head_dim = qkv.shape
    out = qkv.new_empty((batch, length, heads, head_dim))
    stats = qkv.new_empty((batch, heads, length, 2), dtype=torch.float32)
    if not qkv.numel():
        return out, stats
    groups = Groups.of(*grid[:4])
    strides, unit = in_units(qkv.stride()[:4])
    common = {"P": groups.prefix, **_columns(head_dim), "UNIT": unit, "PRECISION": precision(qkv.dtype)}
    factor = in_two_parts(scale * math.log2(math.e))
    tile = _time_tile("time_forward", qkv, groups, axis)
    splits = -(-num_patches // tile["PACK"]) if tile else groups.groups
    partial_shape = (batch, heads, groups.prefix, splits)
    values = qkv.new_empty((*partial_shape, head_dim), dtype=torch.float32)
    partial_stats = qkv.new_empty((*partial_shape, 2), dtype=torch.float32)
    with current_device(qkv):
        if tile:
            time_forward[(batch * splits * heads,)](
                qkv, out, stats, values, partial_stats, *strides, num_patches, heads, *factor,
                **common, **tile,
            )  # fmt: skip
        else:
            config = _flash_tiles("flash_forward", qkv, groups)
            flash_forward[(batch * splits * heads * groups.tiles(config["BLOCK_M"]),)](
                qkv,
                out,
                stats,
                values,
                partial_stats,
                *strides,
                *groups[1:],
                length,
                heads,
                *factor,
                **common,
                **config,
            )
        if groups.prefix:
            merge_prefix[(batch * heads * groups.prefix,)](
                values, partial_stats, out, stats, splits, length, heads,
                P=groups.prefix, BLOCK=_MERGED_SPLITS, **_columns(head_dim), enable_fp_fusion=False,
            )  # fmt: skip
    return out, stats


def backward(
    grad_out: torch.Tensor, packed: Sequence[torch.Tensor], out: torch.Tensor, stats: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor]:
    from hsta_kernels.ops.space_time_attention.triton_flash_backward import flash_backward_kv, flash_backward_q
    from hsta_kernels.ops.space_time_attention.triton_tile import sum_prefix
    from hsta_kernels.ops.space_time_attention.triton_time import time_backward

    (qkv,) = packed
    num_patches, axis, scale = grid.num_patches, grid.axis, grid.scale
    batch, length, _, heads, head_dim = qkv.shape
    grad_qkv = qkv.new_empty(qkv.shape)
    if not qkv.numel():
        return (grad_qkv,)
    groups = Groups.of(*grid[:4])
    strides, unit = in_units(qkv.stride()[:4])
    grad_strides, grad_unit = in_units(grad_out.stride()[:3])
    common = {
        "P": groups.prefix, **_columns(head_dim), "UNIT": unit, "GRAD_UNIT": grad_unit,
        "PRECISION": precision(qkv.dtype),
    }  # fmt: skip
    scales = (*in_two_parts(scale * math.log2(math.e)), scale)
    tile = _time_tile("time_backward", qkv, groups, axis)
    splits = -(-num_patches // tile["PACK"]) if tile else groups.groups
    partial_grads = qkv.new_empty((batch, 3, heads, groups.prefix, splits, head_dim), dtype=torch.float32)
    with current_device(qkv):
        if tile:
            time_backward[(batch * splits * heads,)](
                grad_out, qkv, out, stats, grad_qkv, partial_grads, *grad_strides, *strides, num_patches, heads,
                *scales, **common, **tile,
            )  # fmt: skip
        else:
            delta = qkv.new_empty((batch, heads, length), dtype=torch.float32)
            sizes = (*grad_strides, *strides, *groups[1:], length, heads, *scales)
            config = _flash_tiles("flash_backward_q", qkv, groups)
            flash_backward_q[(batch * splits * heads * groups.tiles(config["BLOCK_M"]),)](
                grad_out, qkv, out, stats, delta, grad_qkv, partial_grads, *sizes, **common, **config
            )
            config = _flash_tiles("flash_backward_kv", qkv, groups)
            flash_backward_kv[(batch * splits * heads * groups.tiles(config["BLOCK_M"]),)](
                grad_out, qkv, stats, delta, grad_qkv, partial_grads, *sizes, **common, **config
            )
        if groups.prefix:
            sum_prefix[(batch * 3 * heads * groups.prefix,)](
                partial_grads, grad_qkv, splits, length, heads,
                P=groups.prefix, BLOCK=_MERGED_SPLITS, **_columns(head_dim), enable_fp_fusion=False,
            )  # fmt: skip
    return (grad_qkv,)


def _columns(head_dim: int) -> dict[str, int]:
    return {"D": head_dim, "BLOCK_D": max(16, power_of_2(head_dim))}


def _time_tile(kernel: str, qkv: torch.Tensor, groups: Groups, axis: str) -> dict[str, Any] | None:
    """How to tile attention over time: PACK sequences and the prefix in ROWS rows.

    None when a sequence is too long for one tile, or lies along another axis.
    """
    sequence = groups.members + groups.prefix
    if axis != "time" or not configured(kernel, qkv, qkv.shape[-1], sequence):
        return None
    config = configuration(kernel, qkv, qkv.shape[-1], sequence)
    return config | {"T": groups.members, "PACK": (config["ROWS"] - groups.prefix) // groups.members}


def _flash_tiles(kernel: str, qkv: torch.Tensor, groups: Groups) -> dict[str, Any]:
    config = configuration(kernel, qkv, qkv.shape[-1], groups.members)
    return config | {"TAIL_M": groups.tail(config["BLOCK_M"]), "TAIL_N": groups.tail(config["BLOCK_N"])}
