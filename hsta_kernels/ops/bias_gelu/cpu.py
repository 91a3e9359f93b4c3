"""Calls into csrc/cpu/bias_gelu.cpp."""

from __future__ import annotations

import torch

from hsta_kernels.ops.launch import contiguous_like
from hsta_kernels.ops.launch import cpu as launch
from hsta_kernels.ops.philox import kernel_arguments


def refuse(x: torch.Tensor) -> str | None:
    return launch.refuse("x", x)


def forward(x: torch.Tensor, bias: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None) -> torch.Tensor:
    out = contiguous_like(x)
    if x.numel():
        launch.run("bias_gelu_forward", x, bias, *kernel_arguments(dropout_rate, seed), out)
    return out


def backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor,
    dropout_rate: float,
    seed: torch.Tensor | None,
    grad_x: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_x, grad_bias = contiguous_like(x) if grad_x is None else grad_x, torch.zeros_like(bias)
    if x.numel():
        launch.run("bias_gelu_backward", x, bias, *kernel_arguments(dropout_rate, seed), grad_out, grad_x, grad_bias)
    return grad_x, grad_bias
