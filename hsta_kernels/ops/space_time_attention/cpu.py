"""Calls into csrc/cpu/space_time_attention.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hsta_kernels.ops.launch import contiguous_like
from hsta_kernels.ops.launch import cpu as launch
from hsta_kernels.ops.philox import kernel_arguments
from hsta_kernels.ops.space_time_attention.grid import AXES, PREFIXES, TOKEN_ORDERS, Grid
from hsta_kernels.ops.space_time_attention.operands import NOTHING, Operands
from hsta_kernels.ops.space_time_attention.qk_norm import KINDS
from hsta_kernels.ops.space_time_attention.rotary import PAIRS


def refuse(qkv: Sequence[torch.Tensor], grid: Grid) -> str | None:
    return launch.refuse("qkv", qkv[0])


def out_shape(qkv: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """(B, L, H, D)"""
    batch, length, heads, head_dim = (*qkv[0].shape[:2], *qkv[0].shape[-2:])
    return batch, length, heads, head_dim


def stats_shape(qkv: Sequence[torch.Tensor], grid: Grid) -> tuple[int, ...]:
    """(B, H, P, 2), where the keys of prefix queries are in several groups."""
    return qkv[0].shape[0], qkv[0].shape[-2], grid.stats_of_prefix, 2


def forward(
    qkv: Sequence[torch.Tensor],
    grid: Grid,
    operands: Operands = NOTHING,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out = qkv[0].new_empty(out_shape(qkv)) if out is None else out
    stats = qkv[0].new_empty(stats_shape(qkv, grid), dtype=torch.float32)
    if out.numel():
        launch.run("space_time_attention_forward", *_arguments(qkv, grid, operands), out, stats)
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
    grads = tuple(map(contiguous_like, qkv)) if grads is None else grads
    grad_affine = None if operands.affine is None else torch.zeros_like(operands.affine)
    if out.numel():
        tensors = (out, stats, grad_out, _parts(grads), grad_affine, grad_bias)
        launch.run("space_time_attention_backward", *_arguments(qkv, grid, operands), *tensors)
    return grads if grad_affine is None else (*grads, grad_affine)


def _arguments(
    qkv: Sequence[torch.Tensor],
    grid: Grid,
    operands: Operands,
) -> tuple[Any, ...]:
    """Those of both passes, as csrc/operators.h reads them."""
    choices = AXES.index(grid.axis), TOKEN_ORDERS.index(grid.token_order), PREFIXES.index(grid.prefix)
    sizes = grid.num_prefix_tokens, grid.num_frames, grid.num_patches
    numbers = grid.scale, *kernel_arguments(grid.dropout_rate, operands.seed)
    pairs = 0 if grid.rotary_pairs is None else PAIRS.index(grid.rotary_pairs)
    norm = 0 if grid.qk_norm is None else KINDS.index(grid.qk_norm), grid.qk_norm_eps
    return *choices, *sizes, *numbers, pairs, *norm, _parts(qkv), *operands.tensors[1:]


def _parts(qkv: Sequence[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """The packed tensor, or a tuple of three."""
    return qkv[0] if len(qkv) == 1 else tuple(qkv)
