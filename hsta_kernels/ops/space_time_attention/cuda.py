"""Calls into csrc/cuda/space_time_attention_{forward,backward}.cu."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hsta_kernels.ops.launch import cuda as launch
from hsta_kernels.ops.space_time_attention import cpu
from hsta_kernels.ops.space_time_attention.cpu import stats_shape as stats_shape
from hsta_kernels.ops.space_time_attention.grid import Grid
from hsta_kernels.ops.space_time_attention.operands import NOTHING, Operands

_MAX_FRAMES, _MAX_PREFIX, _MAX_HEAD_DIM = 64, 16, 128


def refuse(qkv: Sequence[torch.Tensor], grid: Grid) -> str | None:
    if grid.axis != "time":
        return f"axis is {grid.axis!r}; the kernels attend over time"
    if grid.num_prefix_tokens and grid.prefix != "all":
        return f"prefix is {grid.prefix!r}; the kernels have 'all'"
    if grid.token_order != "time_major":
        return f"token_order is {grid.token_order!r}; the kernels take 'time_major'"
    if grid.dropout_rate:
        return f"dropout_rate is {grid.dropout_rate}; the kernels drop nothing"
    if grid.rotary_pairs is not None:
        return "rotary is given; the kernels rotate nothing"
    if grid.qk_norm is not None:
        return "qk_norm is given; the kernels normalize nothing"
    if grid.biased:
        return "bias is given; the kernels add none to the scores"
    if grid.num_frames > _MAX_FRAMES or grid.num_prefix_tokens > _MAX_PREFIX:
        return (
            f"there are {grid.num_frames} frames and {grid.num_prefix_tokens} prefix tokens; the kernels take up to "
            f"{_MAX_FRAMES} and {_MAX_PREFIX}"
        )
    head_dim = qkv[0].shape[-1]
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return f"qkv has a head_dim of {head_dim}; the kernels take multiples of 8 up to {_MAX_HEAD_DIM}"
    return launch.refuse("qkv", qkv[0])


def forward(
    qkv: Sequence[torch.Tensor],
    grid: Grid,
    operands: Operands = NOTHING,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return cpu.forward(tuple(map(launch.aligned, qkv)), grid, operands, out, launch.run)


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
    tensors = (launch.aligned(grad_out), tuple(map(launch.aligned, qkv)), launch.aligned(out), stats)
    return cpu.backward(*tensors, grid, operands, grad_bias, grads, launch.run)
