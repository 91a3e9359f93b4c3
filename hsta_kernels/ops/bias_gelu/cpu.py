"""Calls into csrc/cpu/bias_gelu.cpp."""

from __future__ import annotations

import torch

from hsta_kernels.ops.launch import cpu as launch


def refuse(x: torch.Tensor) -> str | None:
    return launch.refuse("x", x)


def forward(x: torch.Tensor, bias: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None) -> torch.Tensor:
    out = x.new_empty(x.shape)
    if x.numel():
        launch.module().bias_gelu_forward(*_common(x, bias, dropout_rate, seed), out.data_ptr())
    return out


def backward(
    grad_out: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_x, grad_bias = x.new_empty(x.shape), torch.zeros_like(bias)
    if x.numel():
        launch.module().bias_gelu_backward(
            *_common(x, bias, dropout_rate, seed),
            grad_out.data_ptr(),
            grad_out.stride(0),
            grad_x.data_ptr(),
            grad_bias.data_ptr(),
        )
    return grad_x, grad_bias


def _common(x: torch.Tensor, bias: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None) -> tuple:
    bits = 0 if seed is None else int(seed) & 0xFFFFFFFFFFFFFFFF
    rate = 0.0 if seed is None else dropout_rate
    return launch.DTYPES[x.dtype], tuple(x.shape), x.data_ptr(), x.stride(0), bias.data_ptr(), rate, bits
