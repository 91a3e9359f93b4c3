"""Launches of the Triton kernels of bias_gelu."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels.ops.bias_gelu.reference import BITS
from hsta_kernels.ops.launch import current_device
from hsta_kernels.ops.launch.triton import configuration, in_units, power_of_2
from hsta_kernels.ops.launch.triton import refuse as refuse_tensor
from hsta_kernels.ops.philox import threshold

COLUMNS_PER_PROGRAM = 512  # divides the widths of MLPs, which are no powers of 2
ROWS_PER_PROGRAM = 32  # of the backward pass: its share of the bias's gradient is then 1/24 of the traffic in bf16


def refuse(x: torch.Tensor) -> str | None:
    return refuse_tensor("x", x, "bias_gelu_backward")


def forward(x: torch.Tensor, bias: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None) -> torch.Tensor:
    from hsta_kernels.ops.bias_gelu.triton_rows import bias_gelu_forward

    out = x.new_empty(x.shape)
    if x.numel():
        rows, width = x.shape
        strides, unit = in_units((x.stride(0),))
        options = _options("bias_gelu_forward", x, unit)
        programs = -(-rows // options["BLOCK"]) * -(-width // options["BLOCK_C"])
        with current_device(x):
            bias_gelu_forward[(programs,)](
                x, bias, seed, out, *strides, rows, width, *_dropout(dropout_rate), **options
            )
    return out


def backward(
    grad_out: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    from hsta_kernels.ops.bias_gelu.triton_rows import bias_gelu_backward

    if not x.numel():
        return x.new_empty(x.shape), torch.zeros_like(bias)
    rows, width = x.shape
    grad_x = x.new_empty(x.shape)
    runs = -(-rows // ROWS_PER_PROGRAM)
    parts = bias.new_empty((runs, width))
    strides, unit = in_units((grad_out.stride(0), x.stride(0)))
    options = _options("bias_gelu_backward", x, unit)
    with current_device(x):
        bias_gelu_backward[(runs * -(-width // options["BLOCK_C"]),)](
            grad_out, x, bias, seed, grad_x, parts, *strides, rows, width, *_dropout(dropout_rate), ROWS_PER_PROGRAM,
            **options,
        )  # fmt: skip
    return grad_x, parts.sum(0)


def _dropout(rate: float) -> tuple[int, float]:
    return threshold(rate, BITS), 1 / (1 - rate)


def _options(kernel: str, rows: torch.Tensor, unit: int) -> dict[str, Any]:
    width = rows.shape[1]
    return {"BLOCK_C": min(COLUMNS_PER_PROGRAM, max(8, power_of_2(width))), "UNIT": unit} | configuration(
        kernel, rows, width
    )
