"""Additive bias of the scores by relative position: what it has to be."""

from __future__ import annotations

import torch

from hsta_kernels.ops.checks import check_shape, check_tensor
from hsta_kernels.ops.space_time_attention.grid import Grid


def check_bias(bias: torch.Tensor | None, tokens: torch.Tensor, grid: Grid) -> torch.Tensor | None:
    """The bias, at least in float32; `tokens` is the first of the call's tensors, (B, L, ..., H, D)."""
    if bias is None:
        return None
    check_tensor("bias", bias, "(H, R, R)")
    rows = grid.group_rows
    check_shape("bias", bias, (tokens.shape[-2], rows, rows), "(H, R, R) with the R rows of a group")
    if bias.dtype not in (torch.float32, tokens.dtype):
        raise TypeError(f"bias must be float32 or of the dtype of qkv, {tokens.dtype}; got {bias.dtype}")
    if bias.device != tokens.device:
        raise ValueError(f"bias must be on the device of qkv, {tokens.device}; got {bias.device}")
    return bias.to(torch.promote_types(bias.dtype, torch.float32))
