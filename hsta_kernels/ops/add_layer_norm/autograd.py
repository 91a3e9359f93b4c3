"""The custom ops and the autograd Function of add_layer_norm. Tensors are matrices of rows."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops.add_layer_norm import cpu, reference, triton
from hsta_kernels.ops.checks import rows_contiguous
from hsta_kernels.ops.dispatch import call, custom_op, gradient

# Each module has forward(residual, x, weight, bias, eps, norm_dtype) -> (norm, sum), `residual` as wide as `x` or
# wider, the norm as wide as either, and backward(grad_norm, grad_sum, sum, weight, bias, eps, norm_anew) ->
# (grad_residual, grad_x, grad_weights, norm). The gradient of x is that of the residual: grad_x is that in the dtype
# of grad_norm, None where that is the sum's. So is the norm, None if it is not to be computed anew. Gradients of weight
# and bias are the two rows of grad_weights, float32, so that one sum of a GPU yields both.
OPERATOR = backends.Operator(
    "add_layer_norm",
    {"cpu": cpu, "triton": triton},
    lambda tensor: (tensor(9, 64), tensor(9, 64)),
)


def by_width(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(residual, x) as kernels take them, the other way round where x alone is float32."""
    return (x, residual) if x.dtype == torch.float32 and residual.dtype != torch.float32 else (residual, x)


@custom_op("add_layer_norm_forward")
def forward(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    norm_dtype: torch.dtype,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = rows_contiguous(residual), rows_contiguous(x)
    return OPERATOR.implementations[backend].forward(*rows, weight.contiguous(), bias.contiguous(), eps, norm_dtype)


@forward.register_fake
def _(residual, x, weight, bias, eps, norm_dtype, backend):
    return residual.new_empty(residual.shape, dtype=norm_dtype), residual.new_empty(residual.shape)


@custom_op("add_layer_norm_backward")
def backward(
    grad_norm: torch.Tensor,
    grad_sum: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    norm_anew: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What an implementation gives; an op's results are tensors, so for None an empty one."""
    rows = rows_contiguous(grad_norm), rows_contiguous(grad_sum), total
    implementation = OPERATOR.implementations[backend]
    grad_residual, grad_x, grad_weights, norm = implementation.backward(
        *rows, weight.contiguous(), bias.contiguous(), eps, norm_anew
    )
    none = grad_norm.new_empty
    return grad_residual, none(0) if grad_x is None else grad_x, grad_weights, none(0) if norm is None else norm


@backward.register_fake
def _(grad_norm, grad_sum, total, weight, bias, eps, norm_anew, backend):
    narrow = grad_norm.dtype != total.dtype
    return (
        total.new_empty(total.shape),
        grad_norm.new_empty(total.shape if narrow else 0),
        total.new_empty((2, total.shape[1]), dtype=torch.float32),
        grad_norm.new_empty(total.shape if norm_anew else 0),
    )


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
        norm_dtype: torch.dtype,
        backend: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norm, total = call(forward, residual, x, weight, bias, eps, norm_dtype, backend)
        ctx.save_for_backward(total, weight, bias)
        ctx.arguments = (eps, norm_dtype, backend)
        ctx.x_dtype = x.dtype
        return norm, total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        eps, norm_dtype, backend = ctx.arguments

        def kernel(
            grad_norm: torch.Tensor,
            grad_sum: torch.Tensor,
            total: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor,
            *x: torch.Tensor,
        ) -> tuple[torch.Tensor, ...]:
            grads = call(backward, grad_norm, grad_sum, total, weight, bias, eps, False, backend)
            grad_weights = grads[2].to(torch.promote_types(weight.dtype, bias.dtype))
            return grads[0], grad_weights[0].to(weight.dtype), grad_weights[1].to(bias.dtype), *of_x(grads, x)

        def formula(
            total: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *x: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            total = sum(x, total)
            return reference.layer_norm(total, weight, bias, eps).to(norm_dtype), total

        total, *weights = ctx.saved_tensors
        grads = gradient(kernel, formula, grad_outputs, (total, *weights, *in_sum(total, ctx.x_dtype)))
        return grads[0], grads[3 if grads[3:] else 0], *grads[1:3], None, None, None


def in_sum(total: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """What stands for x where a backward pass has no more than the sum: zeros, of which only the gradient matters.

    Nothing where x has the sum's dtype, and hence its gradient.
    """
    return () if dtype == total.dtype else (total.new_zeros((), dtype=dtype).expand(total.shape),)


def of_x(grads: tuple[torch.Tensor, ...], x: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Gradients of what `in_sum` gave, from the results of `backward`."""
    return tuple(grads[1] if grads[1].dtype == narrow.dtype else grads[0].to(narrow.dtype) for narrow in x)
