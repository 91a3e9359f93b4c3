"""Calls into csrc/cpu/space_time_attention.cpp, and with another `run` into what has the same arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hsta_kernels.ops.launch import contiguous_like
from hsta_kernels.ops.launch import cpu as launch

_AXES = {"time": 0, "space": 1, "joint": 2}  # csrc/operators.h


def refuse(qkv: torch.Tensor, *grid: Any) -> str | None:
    return launch.refuse("qkv", qkv)


def stats_shape(qkv: torch.Tensor, axis: str, num_prefix_tokens: int) -> tuple[int, ...]:
    """(B, H, P, 2): only the prefix queries' keys are in several groups."""
    return qkv.shape[0], qkv.shape[3], 0 if axis == "joint" else num_prefix_tokens, 2


def forward(
    qkv: torch.Tensor,
    num_frames: int,
    num_patches: int,
    axis: str,
    num_prefix_tokens: int,
    scale: float,
    run: Callable[..., None] = launch.run,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, _, heads, head_dim = qkv.shape
    out = qkv.new_empty((batch, length, heads, head_dim))
    stats = qkv.new_empty(stats_shape(qkv, axis, num_prefix_tokens), dtype=torch.float32)
    if qkv.numel():
        grid = _AXES[axis], num_prefix_tokens, num_frames, num_patches
        run("space_time_attention_forward", *grid, scale, qkv, out, stats)
    return out, stats


def backward(
    grad_out: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    stats: torch.Tensor,
    num_frames: int,
    num_patches: int,
    axis: str,
    num_prefix_tokens: int,
    scale: float,
    run: Callable[..., None] = launch.run,
) -> torch.Tensor:
    grad_qkv = contiguous_like(qkv)
    if qkv.numel():
        grid = _AXES[axis], num_prefix_tokens, num_frames, num_patches
        run("space_time_attention_backward", *grid, scale, qkv, out, stats, grad_out, grad_qkv)
    return grad_qkv
