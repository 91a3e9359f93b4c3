"""Calls into csrc/cpu/space_time_attention.cpp."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels.ops.launch import cpu as launch

_AXES = {"time": 0, "space": 1, "joint": 2}


def refuse(qkv: torch.Tensor, *grid: Any) -> str | None:
    return launch.refuse("qkv", qkv)


def stats_shape(qkv: torch.Tensor, axis: str, num_prefix_tokens: int) -> tuple[int, ...]:
    """(B, H, P, 2): only the prefix queries' keys are in several groups."""
    return qkv.shape[0], qkv.shape[3], 0 if axis == "joint" else num_prefix_tokens, 2


def forward(
    qkv: torch.Tensor, num_frames: int, num_patches: int, axis: str, num_prefix_tokens: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, _, heads, head_dim = qkv.shape
    out = qkv.new_empty((batch, length, heads, head_dim))
    stats = qkv.new_empty(stats_shape(qkv, axis, num_prefix_tokens), dtype=torch.float32)
    if qkv.numel():
        launch.module().space_time_attention_forward(
            launch.DTYPES[qkv.dtype],
            _AXES[axis],
            (batch, num_prefix_tokens, num_frames, num_patches, heads, head_dim),
            scale,
            qkv.data_ptr(),
            qkv.stride()[:4],
            out.data_ptr(),
            stats.data_ptr(),
        )
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
) -> torch.Tensor:
    batch, _, _, heads, head_dim = qkv.shape
    grad_qkv = qkv.new_empty(qkv.shape)
    if qkv.numel():
        launch.module().space_time_attention_backward(
            launch.DTYPES[qkv.dtype],
            _AXES[axis],
            (batch, num_prefix_tokens, num_frames, num_patches, heads, head_dim),
            scale,
            qkv.data_ptr(),
            qkv.stride()[:4],
            out.data_ptr(),
            stats.data_ptr(),
            grad_out.data_ptr(),
            grad_out.stride()[:3],
            grad_qkv.data_ptr(),
        )
    return grad_qkv
