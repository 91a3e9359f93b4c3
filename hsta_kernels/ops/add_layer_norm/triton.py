"""Launches of the Triton kernels of add_layer_norm."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels.ops.launch.triton import configuration, current_device, in_units, power_of_2
from hsta_kernels.ops.launch.triton import refuse as refuse_tensor

ROWS_PER_PROGRAM = 32  # of the backward pass: its share of the weights' gradients is then 1/16 of the traffic in bf16


def refuse(x: torch.Tensor, residual: torch.Tensor) -> str | None:
    if residual.dtype != x.dtype and x.dtype != torch.float32:
        return f"x is {x.dtype} and residual {residual.dtype}; the kernel takes one dtype, or float32 for x"
    kernel = "add_layer_norm_backward"
    return refuse_tensor("x", x, kernel) or refuse_tensor("residual", residual, kernel)


def forward(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    from hsta_kernels.ops.add_layer_norm.triton_rows import add_layer_norm_forward

    total, norm = x.new_empty(x.shape), x.new_empty(x.shape)
    if x.numel():
        rows, width = x.shape
        strides, unit = in_units((x.stride(0), residual.stride(0)))
        options = _options("add_layer_norm_forward", x, unit)
        with current_device(x):
            add_layer_norm_forward[(-(-rows // options["BLOCK"]),)](
                x, residual, weight, bias, total, norm, *strides, rows, width, eps, **options
            )
    return norm, total


def backward(
    grad_norm: torch.Tensor, grad_sum: torch.Tensor, total: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from hsta_kernels.ops.add_layer_norm.triton_rows import add_layer_norm_backward

    if not total.numel():
        return total.new_empty(total.shape), torch.zeros_like(weight), torch.zeros_like(weight)
    rows, width = total.shape
    grad_x = total.new_empty(total.shape)
    programs = -(-rows // ROWS_PER_PROGRAM)
    parts = weight.new_empty((2, programs, width))
    strides, unit = in_units((grad_norm.stride(0), grad_sum.stride(0)))
    options = _options("add_layer_norm_backward", total, unit)
    with current_device(total):
        add_layer_norm_backward[(programs,)](
            grad_norm, grad_sum, total, weight, grad_x, *parts.unbind(), *strides, rows, width, eps, ROWS_PER_PROGRAM,
            **options,
        )  # fmt: skip
    return grad_x, parts[0].sum(0), parts[1].sum(0)


def _options(kernel: str, rows: torch.Tensor, unit: int) -> dict[str, Any]:
    width = power_of_2(rows.shape[1])
    return {"BLOCK_C": width, "UNIT": unit, **configuration(kernel, rows, width)}
