"""Calls into csrc/cuda/space_time_attention_{forward,backward}.cu."""

from __future__ import annotations

import torch

from hsta_kernels.ops.launch import cuda as launch
from hsta_kernels.ops.space_time_attention import cpu
from hsta_kernels.ops.space_time_attention.cpu import stats_shape as stats_shape

_MAX_FRAMES, _MAX_PREFIX, _MAX_HEAD_DIM = 64, 16, 128


def refuse(
    qkv: torch.Tensor, num_frames: int = 1, num_patches: int = 1, axis: str = "time", num_prefix_tokens: int = 0
) -> str | None:
    if axis != "time":
        return f"axis is {axis!r}; the kernels attend over time"
    if num_frames > _MAX_FRAMES or num_prefix_tokens > _MAX_PREFIX:
        return (
            f"there are {num_frames} frames and {num_prefix_tokens} prefix tokens; the kernels take up to "
            f"{_MAX_FRAMES} and {_MAX_PREFIX}"
        )
    if qkv.shape[-1] % 8 or qkv.shape[-1] > _MAX_HEAD_DIM:
        return f"qkv has a head_dim of {qkv.shape[-1]}; the kernels take multiples of 8 up to {_MAX_HEAD_DIM}"
    return launch.refuse("qkv", qkv)


def forward(
    qkv: torch.Tensor, num_frames: int, num_patches: int, axis: str, num_prefix_tokens: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return cpu.forward(launch.aligned(qkv), num_frames, num_patches, axis, num_prefix_tokens, scale, launch.run)


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
    grid = num_frames, num_patches, axis, num_prefix_tokens, scale
    return cpu.backward(launch.aligned(grad_out), launch.aligned(qkv), out, stats, *grid, launch.run)
