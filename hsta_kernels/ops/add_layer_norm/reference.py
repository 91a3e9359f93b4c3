"""add_layer_norm written out in elementary PyTorch operations."""

from __future__ import annotations

import torch


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    norm_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes and meaning as in the public function; statistics in float32 or, for float64 input, in float64."""
    total = x + residual
    return layer_norm(total, weight, bias, eps).to(norm_dtype), total


def layer_norm(total: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """That of the sum."""
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (centred * rstd * weight + bias).to(total.dtype)
