"""Calls into csrc/cuda/space_time_attention_{forward,backward}.cu."""

from __future__ import annotations

import torch

from hsta_kernels.ops.launch import cuda as launch

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


def stats_shape(qkv: torch.Tensor, axis: str, num_prefix_tokens: int) -> tuple[int, ...]:
    """(B, H, P, 2): only the prefix queries' keys are in several groups."""
    return qkv.shape[0], qkv.shape[3], num_prefix_tokens, 2


def forward(
    qkv: torch.Tensor, num_frames: int, num_patches: int, axis: str, num_prefix_tokens: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, _, heads, head_dim = qkv.shape
    out = qkv.new_empty((batch, length, heads, head_dim))
    stats = qkv.new_empty(stats_shape(qkv, axis, num_prefix_tokens), dtype=torch.float32)
    if qkv.numel():
        sizes = (batch, num_prefix_tokens, num_frames, num_patches, heads, head_dim)
        qkv = launch.aligned(qkv)
        workspace = _workspace(qkv, sizes)
        with launch.current_device(qkv):
            launch.module().space_time_attention_forward(
                launch.DTYPES[qkv.dtype],
                sizes,
                scale,
                qkv.data_ptr(),
                qkv.stride()[:4],
                out.data_ptr(),
                stats.data_ptr(),
                workspace.data_ptr(),
                launch.stream(qkv),
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
        sizes = (batch, num_prefix_tokens, num_frames, num_patches, heads, head_dim)
        qkv, grad_out = launch.aligned(qkv), launch.aligned(grad_out)
        workspace = _workspace(qkv, sizes)
        with launch.current_device(qkv):
            launch.module().space_time_attention_backward(
                launch.DTYPES[qkv.dtype],
                sizes,
                scale,
                qkv.data_ptr(),
                qkv.stride()[:4],
                out.data_ptr(),
                stats.data_ptr(),
                grad_out.data_ptr(),
                grad_out.stride()[:3],
                grad_qkv.data_ptr(),
                workspace.data_ptr(),
                launch.stream(qkv),
            )
    return grad_qkv


def _workspace(qkv: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    floats = launch.module().space_time_attention_workspace(launch.DTYPES[qkv.dtype], sizes)
    return qkv.new_empty(floats, dtype=torch.float32)
