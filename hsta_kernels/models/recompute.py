"""Two steps of a layer at a time, whose result in between is recomputed in the backward pass instead of saved.

A pre-norm transformer keeps, for the weight gradient of each linear layer, that layer's input. Two of these inputs are
one cheap pass over something else that is kept anyway: a LayerNorm of the residual stream, and the GELU of the MLP's
first product. Not saving them takes a third off the memory of training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsta_kernels import backends, ops
from hsta_kernels.ops.add_layer_norm import autograd as add_layer_norm
from hsta_kernels.ops.bias_gelu import autograd as bias_gelu


def add_norm_linear(
    x: Tensor, residual: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(linear(norm(x + residual)), x + residual), shapes (..., N) and (..., C)."""
    backend = backends.choose("add_layer_norm", x, residual)
    if backend == "reference":
        y, total = ops.add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)
        return F.linear(y, weight, bias), total
    shape = x.shape
    out, total = _AddNormLinear.apply(
        x.reshape(-1, shape[-1]),
        residual.reshape(-1, shape[-1]),
        norm.weight.float(),
        norm.bias.float(),
        *_autocast(x.device, weight, bias),
        norm.eps,
        backend,
    )
    return out.view(*shape[:-1], weight.shape[0]), total.view(shape)


def bias_gelu_linear(x: Tensor, bias_before: Tensor, weight: Tensor, bias: Tensor, dropout_rate: float = 0.0) -> Tensor:
    """linear(dropout(gelu(x + bias_before))), (..., C) -> (..., N)."""
    backend = backends.choose("bias_gelu", x)
    if backend == "reference":
        return F.linear(ops.bias_gelu(x, bias_before, dropout_rate), weight, bias)
    seed = torch.randint(2**62, (1,), device=x.device) if dropout_rate else None
    rows = x.reshape(-1, x.shape[-1])
    arguments = (*_autocast(x.device, weight, bias), dropout_rate, seed, backend)
    return _BiasGeluLinear.apply(rows, bias_before.float(), *arguments).view(*x.shape[:-1], weight.shape[0])


def _autocast(device: torch.device, *tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors of a matrix product as autocast would have them. Their casts are differentiated outside our Functions."""
    if not torch.is_autocast_enabled(device.type):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device.type)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _linear_backward(grad: Tensor, rows: Tensor, weight: Tensor, bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the rows, the weight and the bias of a linear layer."""
    return grad @ weight, grad.T @ rows, grad.sum(0) if bias else None


class _AddNormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        y, total = add_layer_norm.forward(x, residual, norm_weight, norm_bias, eps, backend)
        ctx.save_for_backward(total, norm_weight, norm_bias, weight)
        ctx.arguments = (eps, backend)
        ctx.residual_dtype, ctx.has_bias = residual.dtype, bias is not None
        return F.linear(y.to(weight.dtype), weight, bias), total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_out, grad_total = grad_outputs
        total, norm_weight, norm_bias, weight = ctx.saved_tensors
        eps, backend = ctx.arguments
        y = F.layer_norm(total.float(), total.shape[-1:], norm_weight, norm_bias, eps).to(weight.dtype)
        grad_y, grad_weight, grad_bias = _linear_backward(grad_out, y, weight, ctx.has_bias)
        grad_x, grad_norm_weight, grad_norm_bias = add_layer_norm.backward(
            grad_y.to(total.dtype), grad_total, total, norm_weight, eps, backend
        )
        grad_residual = grad_x.to(ctx.residual_dtype)
        return grad_x, grad_residual, grad_norm_weight, grad_norm_bias, grad_weight, grad_bias, None, None


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
        return F.linear(bias_gelu.forward(x, bias_before, dropout_rate, seed, backend), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = grad_outputs
        x, bias_before, weight, seed = ctx.saved_tensors
        dropout_rate, backend = ctx.arguments
        hidden = bias_gelu.forward(x, bias_before, dropout_rate, seed, backend)
        grad_hidden, grad_weight, grad_bias = _linear_backward(grad_out, hidden, weight, True)
        del hidden  # before there is another one of its size
        grad_x, grad_bias_before = bias_gelu.backward(grad_hidden, x, bias_before, dropout_rate, seed, backend)
        return grad_x, grad_bias_before, grad_weight, grad_bias, None, None, None
