"""Calls into csrc/cpu/add_layer_norm.cpp."""

from __future__ import annotations

import torch

from hsta_kernels.ops.launch import contiguous_like
from hsta_kernels.ops.launch import cpu as launch


def refuse(residual: torch.Tensor, x: torch.Tensor) -> str | None:
    return launch.refuse("x", x) or launch.refuse("residual", residual) or refuse_dtypes(residual, x)


def refuse_dtypes(residual: torch.Tensor, x: torch.Tensor) -> str | None:
    if x.dtype != residual.dtype and residual.dtype != torch.float32:
        return f"residual is {residual.dtype} and x {x.dtype}; the kernel takes one dtype, or float32 for residual"
    return None


def forward(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    norm_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = contiguous_like(residual)
    norm = contiguous_like(residual if norm_dtype == residual.dtype else x)
    if residual.numel():
        launch.run("add_layer_norm_forward", residual, x, weight.float(), bias.float(), eps, total, norm)
    return norm, total


def backward(
    grad_norm: torch.Tensor,
    grad_sum: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    norm_anew: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    grad_residual, grad_weights = contiguous_like(total), weight.new_empty((2, *weight.shape), dtype=torch.float32)
    grad_x = None if grad_norm.dtype == total.dtype else contiguous_like(grad_norm)
    norm = contiguous_like(grad_norm) if norm_anew else None
    if total.numel():
        launch.run(
            "add_layer_norm_backward", total, weight.float(), bias.float(), eps, grad_norm, grad_sum, grad_residual,
            grad_x, norm, *grad_weights,
        )  # fmt: skip
    else:
        grad_weights.zero_()
    return grad_residual, grad_x, grad_weights, norm
