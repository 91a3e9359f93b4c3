"""Calls into csrc/cpu/add_layer_norm.cpp."""

from __future__ import annotations

import torch

from hsta_kernels.ops.launch import cpu as launch


def refuse(residual: torch.Tensor, x: torch.Tensor) -> str | None:
    reason = launch.refuse("x", x) or launch.refuse("residual", residual)
    if reason is None and x.dtype != residual.dtype and residual.dtype != torch.float32:
        return f"residual is {residual.dtype} and x {x.dtype}; the kernel takes one dtype, or float32 for residual"
    return reason


def forward(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total, norm = residual.new_empty(residual.shape), residual.new_empty(residual.shape)
    if residual.numel():
        launch.module().add_layer_norm_forward(
            launch.DTYPES[residual.dtype],
            launch.DTYPES[x.dtype],
            tuple(residual.shape),
            eps,
            residual.data_ptr(),
            x.data_ptr(),
            (residual.stride(0), x.stride(0)),
            weight.data_ptr(),
            bias.data_ptr(),
            total.data_ptr(),
            norm.data_ptr(),
        )
    return norm, total


def backward(
    grad_norm: torch.Tensor, grad_sum: torch.Tensor, total: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_residual, grad_weight, grad_bias = (
        total.new_empty(total.shape),
        torch.zeros_like(weight),
        torch.zeros_like(weight),
    )
    if total.numel():
        launch.module().add_layer_norm_backward(
            launch.DTYPES[total.dtype],
            tuple(total.shape),
            eps,
            total.data_ptr(),
            weight.data_ptr(),
            grad_norm.data_ptr(),
            grad_sum.data_ptr(),
            (grad_norm.stride(0), grad_sum.stride(0)),
            grad_residual.data_ptr(),
            grad_weight.data_ptr(),
            grad_bias.data_ptr(),
        )
    return grad_residual, grad_weight, grad_bias
