"""The custom ops and the autograd Function of bias_gelu. Tensors are matrices of rows; the bias is float32."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops.bias_gelu import cpu, reference, triton
from hsta_kernels.ops.checks import rows_contiguous
from hsta_kernels.ops.dispatch import call, custom_op, gradient

# Each module has forward(x, bias, dropout_rate, seed) -> out
# and backward(grad_out, x, bias, dropout_rate, seed) -> (grad_x, grad_bias); the CPU's writes over grad_out where told.
OPERATOR = backends.Operator("bias_gelu", {"cpu": cpu, "triton": triton}, lambda tensor: (tensor(9, 64),))


@custom_op("bias_gelu_forward")
def forward(
    x: torch.Tensor, bias: torch.Tensor, dropout_rate: float, seed: torch.Tensor | None, backend: str
) -> torch.Tensor:
    return OPERATOR.implementations[backend].forward(rows_contiguous(x), bias.contiguous(), dropout_rate, seed)


@forward.register_fake
def _(x, bias, dropout_rate, seed, backend):
    return x.new_empty(x.shape)


@custom_op("bias_gelu_backward")
def backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor,
    dropout_rate: float,
    seed: torch.Tensor | None,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = rows_contiguous(grad_out), rows_contiguous(x)
    return OPERATOR.implementations[backend].backward(*rows, bias.contiguous(), dropout_rate, seed)


@backward.register_fake
def _(grad_out, x, bias, dropout_rate, seed, backend):
    return x.new_empty(x.shape), torch.zeros_like(bias)


@custom_op("bias_gelu_backward_", mutates=("grad",))
def backward_(grad: torch.Tensor, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """On the CPU, without dropout: `grad`, the result's gradient, rows contiguous, becomes that of `x`."""
    return cpu.backward(grad, rows_contiguous(x), bias.contiguous(), 0.0, None, grad_x=grad)[1]


@backward_.register_fake
def _(grad, x, bias):
    return torch.zeros_like(bias)


class BiasGelu(torch.autograd.Function):
    """Saves x alone: GELU's argument and dropout's mask are recomputed in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor,
        dropout_rate: float,
        seed: torch.Tensor | None,
        backend: str,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, bias, seed)
        ctx.arguments = (dropout_rate, backend)
        return call(forward, x, bias, dropout_rate, seed, backend)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, bias, seed = ctx.saved_tensors
        dropout_rate, backend = ctx.arguments

        def kernel(grad_out: torch.Tensor, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return call(backward, grad_out, x, bias, dropout_rate, seed, backend)

        def formula(x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (reference.bias_gelu(x.float(), bias, dropout_rate, seed).to(x.dtype),)

        return *gradient(kernel, formula, grad_outputs, (x, bias)), None, None, None
