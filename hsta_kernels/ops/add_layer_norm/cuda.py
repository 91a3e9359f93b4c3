"""Calls into csrc/cuda/add_layer_norm.cu."""

from __future__ import annotations

import torch

from hsta_kernels.ops.add_layer_norm import cpu
from hsta_kernels.ops.launch import cuda as launch

_MAX_WIDTH = 8192


def refuse(residual: torch.Tensor, x: torch.Tensor) -> str | None:
    reason = launch.refuse("x", x) or launch.refuse("residual", residual) or cpu.refuse_dtypes(residual, x)
    if reason is None and (x.shape[-1] % 8 or x.shape[-1] > _MAX_WIDTH):
        return f"x has rows of {x.shape[-1]}; the kernel takes multiples of 8 up to {_MAX_WIDTH}"
    return reason


def forward(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    norm_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    residual, x, weight, bias = map(launch.aligned, (residual, x, weight.float(), bias.float()))
    return cpu.forward(residual, x, weight, bias, eps, norm_dtype, launch.run)


def backward(
    grad_norm: torch.Tensor,
    grad_sum: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    norm_anew: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    grad_norm, grad_sum, weight, bias = map(launch.aligned, (grad_norm, grad_sum, weight.float(), bias.float()))
    return cpu.backward(grad_norm, grad_sum, total, weight, bias, eps, norm_anew, launch.run)
