"""Launches of the Triton kernels of add_layer_norm."""

from __future__ import annotations

import torch

from hsta_kernels.ops.launch import current_device
from hsta_kernels.ops.launch.triton import configuration, in_units, multiprocessors, power_of_2
from hsta_kernels.ops.launch.triton import refuse as refuse_tensor

# Of the backward pass: how many programs a multiprocessor's registers hold, by their warps. Each takes an equal run of
# rows, on which the last bits of the weights' gradients depend, and no less than ROWS: what it leaves of these
# gradients is then at most 1/16 of the traffic in bfloat16.
PROGRAMS = {4: 3, 8: 2}
ROWS = 32


def refuse(residual: torch.Tensor, x: torch.Tensor) -> str | None:
    if x.dtype != residual.dtype and residual.dtype != torch.float32:
        return f"residual is {residual.dtype} and x {x.dtype}; the kernel takes one dtype, or float32 for residual"
    kernel = "add_layer_norm_backward"
    return refuse_tensor("x", x, kernel) or refuse_tensor("residual", residual, kernel)


def forward(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    norm_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    from hsta_kernels.ops.add_layer_norm.triton_rows import add_layer_norm_forward

    total, norm = residual.new_empty(residual.shape), residual.new_empty(residual.shape, dtype=norm_dtype)
    if residual.numel():
        rows, width = residual.shape
        strides, unit = in_units((residual.stride(0), x.stride(0)))
        width_of_tile = power_of_2(width)
        options = configuration("add_layer_norm_forward", residual, width_of_tile)
        options |= {"BLOCK_C": width_of_tile, "UNIT": unit}
        with current_device(residual):
            add_layer_norm_forward[(-(-rows // options["BLOCK"]),)](
                residual, x, weight, bias, total, norm, *strides, rows, width, eps, **options
            )
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
    from hsta_kernels.ops.add_layer_norm.triton_rows import add_layer_norm_backward

    grad_residual = total.new_empty(total.shape)
    grad_x = None if grad_norm.dtype == total.dtype else grad_norm.new_empty(total.shape)
    norm = grad_norm.new_empty(total.shape) if norm_anew else None
    if not total.numel():
        return grad_residual, grad_x, weight.new_zeros((2, *weight.shape), dtype=torch.float32), norm
    rows, width = total.shape
    strides, unit = in_units((grad_norm.stride(0), grad_sum.stride(0)))
    options = configuration("add_layer_norm_backward", grad_norm, width)  # of the widest loads
    options |= {"CHUNKS": power_of_2(-(-width // options["CHUNK"])), "STAGES": options["num_stages"]}
    at_a_time, block = multiprocessors(total.device) * PROGRAMS[options["num_warps"]], options["BLOCK"]
    rows_of_program = max(ROWS, -(-rows // (at_a_time * block)) * block)
    programs = -(-rows // rows_of_program)
    parts = weight.new_empty((2, programs, width), dtype=torch.float32)
    with current_device(total):
        add_layer_norm_backward[(programs,)](
            grad_norm, grad_sum, total, weight, bias, grad_residual, grad_x, norm, *parts.unbind(), *strides, rows, eps,
            rows_of_program, C=width, UNIT=unit, **options,
        )  # fmt: skip
    return grad_residual, grad_x, parts.sum(1), norm
