"""Calls into csrc/cuda/add_layer_norm.cu."""

from __future__ import annotations

import torch

from hsta_kernels.ops.launch import cuda as launch

_MAX_WIDTH = 8192


def refuse(residual: torch.Tensor, x: torch.Tensor) -> str | None:
    reason = launch.refuse("x", x) or launch.refuse("residual", residual)
    if reason is None and x.dtype != residual.dtype and residual.dtype != torch.float32:
        return f"residual is {residual.dtype} and x {x.dtype}; the kernel takes one dtype, or float32 for residual"
    if reason is None and (x.shape[-1] % 8 or x.shape[-1] > _MAX_WIDTH):
        return f"x has rows of {x.shape[-1]}; the kernel takes multiples of 8 up to {_MAX_WIDTH}"
    return reason


def forward(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total, norm = residual.new_empty(residual.shape), residual.new_empty(residual.shape)
    if residual.numel():
        residual, x, weight, bias = (launch.aligned(tensor) for tensor in (residual, x, weight, bias))
        with launch.current_device(residual):
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
                launch.stream(residual),
            )
    return norm, total


def backward(
    grad_norm: torch.Tensor, grad_sum: torch.Tensor, total: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if not total.numel():
        return total.new_empty(total.shape), torch.zeros_like(weight), torch.zeros_like(weight)
    grad_residual, grad_weight, grad_bias = (t.new_empty(t.shape) for t in (total, weight, weight))
    grad_norm, grad_sum, weight = (launch.aligned(tensor) for tensor in (grad_norm, grad_sum, weight))
    workspace = weight.new_empty(launch.module().add_layer_norm_workspace(tuple(total.shape)))
    with launch.current_device(total):
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
            workspace.data_ptr(),
            launch.stream(total),
        )
    return grad_residual, grad_weight, grad_bias
