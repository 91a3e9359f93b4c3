"""The custom ops and the autograd Function of add_layer_norm. Tensors are matrices of rows."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops.add_layer_norm import cpu, cuda, reference, triton
from hsta_kernels.ops.checks import rows_contiguous
from hsta_kernels.ops.dispatch import call, custom_op, gradient

# Each module has forward(residual, x, weight, bias, eps) -> (norm, sum), `residual` as wide as `x` or wider,
# and backward(grad_norm, grad_sum, sum, weight, eps) -> (grad_residual, grad_weights): the gradient of x is that of the
# residual; the weight's and the bias's are the two rows of grad_weights, float32, so that one sum of a GPU yields both.
OPERATOR = backends.Operator(
    "add_layer_norm",
    {"cpu": cpu, "cuda": cuda, "triton": triton},
    lambda tensor: (tensor(9, 64), tensor(9, 64)),
)


def by_width(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(residual, x) as kernels take them, the other way round where x alone is float32."""
    return (x, residual) if x.dtype == torch.float32 and residual.dtype != torch.float32 else (residual, x)


@custom_op("add_layer_norm_forward")
def forward(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = rows_contiguous(residual), rows_contiguous(x)
    return OPERATOR.implementations[backend].forward(*rows, weight.contiguous(), bias.contiguous(), eps)


@forward.register_fake
def _(residual, x, weight, bias, eps, backend):
    return residual.new_empty(residual.shape), residual.new_empty(residual.shape)


@custom_op("add_layer_norm_backward")
def backward(
    grad_norm: torch.Tensor,
    grad_sum: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = rows_contiguous(grad_norm), rows_contiguous(grad_sum), total
    return OPERATOR.implementations[backend].backward(*rows, weight.contiguous(), eps)


@backward.register_fake
def _(grad_norm, grad_sum, total, weight, eps, backend):
    return total.new_empty(total.shape), total.new_empty((2, total.shape[1]), dtype=torch.float32)


class AddLayerNorm(torch.autograd.Function):
    """Saves the sum; its mean and variance are recomputed in the backward pass, where the row is read anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        backend: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norm, total = call(forward, residual, x, weight, bias, eps, backend)
        ctx.save_for_backward(total, weight, bias)
        ctx.arguments = (eps, backend)
        ctx.x_dtype = x.dtype
        return norm, total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        eps, backend = ctx.arguments

        def kernel(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            *before, weight, bias = tensors
            grad_residual, grad_weights = call(backward, *before, weight, eps, backend)  # nothing depends on the bias
            grad_weights = grad_weights.to(torch.promote_types(weight.dtype, bias.dtype))
            return grad_residual, grad_weights[0].to(weight.dtype), grad_weights[1].to(bias.dtype)

        def formula(total: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return reference.layer_norm(total, weight, bias, eps), total

        grad_residual, grad_weight, grad_bias = gradient(kernel, formula, grad_outputs, ctx.saved_tensors)
        return grad_residual, grad_residual.to(ctx.x_dtype), grad_weight, grad_bias, None, None
