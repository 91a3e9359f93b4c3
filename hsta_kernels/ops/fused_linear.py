"""A linear layer fused with what comes before it, whose result in between is recomputed in the backward pass.

A pre-norm transformer keeps, for the weight gradient of each linear layer, that layer's input. Two of these inputs are
one cheap pass over something else that is kept anyway: a LayerNorm of the residual stream, and the GELU of the MLP's
first product. Not saving them takes a third off the memory of training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsta_kernels import ops
from hsta_kernels.ops.add_layer_norm import autograd as add_layer_norm
from hsta_kernels.ops.add_layer_norm.reference import layer_norm
from hsta_kernels.ops.bias_gelu import autograd as bias_gelu
from hsta_kernels.ops.bias_gelu.reference import bias_gelu as plain_bias_gelu
from hsta_kernels.ops.checks import autocast_enabled
from hsta_kernels.ops.dispatch import call, gradient


def add_layer_norm_linear(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """``add_layer_norm`` and the linear layer behind it, with gradients of all tensors.

    Args:
        x, residual: (..., C), as those of ``add_layer_norm``.
        norm_weight, norm_bias: (C,), the LayerNorm's.
        weight, bias: (N, C) and (N,) or None, the linear layer's.
        eps: the LayerNorm's.

    Returns:
        (linear(layer_norm(x + residual)), x + residual), shapes (..., N) and (..., C).
    """
    tensors = (x, residual, norm_weight, norm_bias, weight, bias)
    wide, narrow = add_layer_norm.by_width(x, residual)
    backend = add_layer_norm.OPERATOR.choose(wide, narrow, tensors=tensors)
    if backend == "reference":
        y, total = ops.add_layer_norm(x, residual, norm_weight, norm_bias, eps)
        return F.linear(y, weight, bias), total
    shape = x.shape
    out, total = _AddLayerNormLinear.apply(
        wide.reshape(-1, shape[-1]),
        narrow.reshape(-1, shape[-1]),
        norm_weight.float(),
        norm_bias.float(),
        *_autocast(x, weight, bias),
        eps,
        backend,
    )
    return out.view(*shape[:-1], weight.shape[0]), total.view(shape)


def bias_gelu_linear(x: Tensor, bias_before: Tensor, weight: Tensor, bias: Tensor, dropout_rate: float = 0.0) -> Tensor:
    """``bias_gelu`` and the linear layer behind it, with gradients of all tensors.

    Args:
        x: (..., C), the product of the MLP's first projection.
        bias_before: (C,), that projection's bias.
        weight, bias: (N, C) and (N,), the linear layer's.
        dropout_rate: between the two, in [0, 1).

    Returns:
        (..., N): linear(dropout(gelu(x + bias_before))).
    """
    backend = bias_gelu.OPERATOR.choose(x, tensors=(x, bias_before, weight, bias))
    if backend == "reference":
        return F.linear(ops.bias_gelu(x, bias_before, dropout_rate), weight, bias)
    seed = torch.randint(2**62, (1,), device=x.device) if dropout_rate else None
    rows = x.reshape(-1, x.shape[-1])
    arguments = (*_autocast(x, weight, bias), dropout_rate, seed, backend)
    return _BiasGeluLinear.apply(rows, bias_before.float(), *arguments).view(*x.shape[:-1], weight.shape[0])


def _autocast(x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    """What x is multiplied with, as autocast would have it. The casts are differentiated outside our Functions."""
    if not autocast_enabled(x):
        return list(tensors)
    dtype = torch.get_autocast_dtype(x.device.type)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _linear_backward(grad: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the rows and the weight of a linear layer."""
    return grad @ weight, grad.T @ rows


class _AddLayerNormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        y, total = call(add_layer_norm.forward, residual, x, norm_weight, norm_bias, eps, backend)
        ctx.save_for_backward(total, norm_weight, norm_bias, weight)
        ctx.arguments = (eps, backend)
        ctx.x_dtype, ctx.has_bias = x.dtype, bias is not None
        return F.linear(y.to(weight.dtype), weight, bias), total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        eps, backend = ctx.arguments

        def kernel(
            grad_out: Tensor, grad_total: Tensor, total: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor
        ) -> tuple[Tensor, ...]:
            y = F.layer_norm(total.float(), total.shape[-1:], norm_weight, norm_bias, eps).to(weight.dtype)
            grad_y, grad_weight = _linear_backward(grad_out, y, weight)
            arguments = (grad_y.to(total.dtype), grad_total, total, norm_weight, eps, backend)
            grad_residual, grad_norm_weights = call(add_layer_norm.backward, *arguments)
            return grad_residual, *grad_norm_weights, grad_weight

        def formula(total: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            return F.linear(layer_norm(total, norm_weight, norm_bias, eps).to(weight.dtype), weight), total

        grad_residual, *grads = gradient(kernel, formula, grad_outputs, ctx.saved_tensors)
        grad_bias = grad_outputs[0].sum(0) if ctx.has_bias else None
        return grad_residual, grad_residual.to(ctx.x_dtype), *grads, grad_bias, None, None


class _BiasGeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias_before: Tensor,
        weight: Tensor,
        bias: Tensor,
        dropout_rate: float,
        seed: Tensor | None,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(x, bias_before, weight, seed)
        ctx.arguments = (dropout_rate, backend)
        return F.linear(call(bias_gelu.forward, x, bias_before, dropout_rate, seed, backend), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, seed = ctx.saved_tensors
        dropout_rate, backend = ctx.arguments

        def kernel(grad_out: Tensor, x: Tensor, bias_before: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            hidden = call(bias_gelu.forward, x, bias_before, dropout_rate, seed, backend)
            grad_hidden, grad_weight = _linear_backward(grad_out, hidden, weight)
            del hidden  # before there is another one of its size
            return *call(bias_gelu.backward, grad_hidden, x, bias_before, dropout_rate, seed, backend), grad_weight

        def formula(x: Tensor, bias_before: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            hidden = plain_bias_gelu(x.float(), bias_before, dropout_rate, seed).to(x.dtype)
            return (F.linear(hidden, weight),)

        grads = gradient(kernel, formula, grad_outputs, tuple(inputs))
        return *grads, grad_outputs[0].sum(0), None, None, None
