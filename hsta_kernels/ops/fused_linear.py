"""A linear layer fused with what comes before it, whose result in between is recomputed in the backward pass.

A pre-norm transformer keeps, for the weight gradient of each linear layer, that layer's input. Two of these inputs are
one cheap pass over something else that is kept anyway: a LayerNorm of the residual stream, and the GELU of the MLP's
first product. Not saving them takes a third off the memory of training.
"""

from __future__ import annotations

from collections.abc import Callable
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
        *as_autocast(x, weight, bias),
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
    arguments = (*as_autocast(x, weight, bias), dropout_rate, seed, backend)
    return _BiasGeluLinear.apply(rows, bias_before.float(), *arguments).view(*x.shape[:-1], weight.shape[0])


def as_autocast(x: Tensor, *tensors: Any) -> list[Any]:
    """What x is multiplied with, as autocast would have it. The casts are differentiated outside our Functions."""
    if not autocast_enabled(x):
        return list(tensors)
    dtype = torch.get_autocast_dtype(x.device.type)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


# The C library gives a tensor above 32 MB new memory each time, which the system clears page by page as it is touched:
# for an MLP's hidden rows that takes as long as its GELU. Below, the memory of the last such tensor is used again.
_PIECE = 24 << 20  # bytes


def pieces(x: Tensor, width: int) -> list[slice]:
    """Rows of `x` in pieces of which `width` elements a row are little enough to be taken from memory in use.

    All of them where that is not the CPU's, or where a compiler plans the memory.
    """
    rows = x.shape[0]
    bytes_of_all = rows * width * x.element_size()
    if x.device.type != "cpu" or bytes_of_all <= _PIECE or torch.compiler.is_compiling():
        return [slice(0, rows)]
    step = -(-rows // -(-bytes_of_all // _PIECE))
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def in_pieces(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """function(x) for a function of each row by itself that has `width` elements of it in between."""
    parts = pieces(x, width)
    return function(x) if len(parts) == 1 else torch.cat([function(x[rows]) for rows in parts])


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
        norm_dtype = x.dtype if x.dtype == weight.dtype else residual.dtype
        y, total = call(add_layer_norm.forward, residual, x, norm_weight, norm_bias, eps, norm_dtype, backend)
        ctx.save_for_backward(total, norm_weight, norm_bias, weight)
        ctx.arguments = (eps, backend)
        ctx.x_dtype, ctx.has_bias = x.dtype, bias is not None
        return F.linear(y.to(weight.dtype), weight, bias), total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        eps, backend = ctx.arguments

        def kernel(
            grad_out: Tensor,
            grad_total: Tensor,
            total: Tensor,
            norm_weight: Tensor,
            norm_bias: Tensor,
            weight: Tensor,
            *x: Tensor,
        ) -> tuple[Tensor, ...]:
            grad_y = grad_out @ weight
            if total.dtype != torch.float32:
                grad_y = grad_y.to(total.dtype)
            arguments = (grad_y, grad_total, total, norm_weight, norm_bias, eps, True, backend)
            grads = call(add_layer_norm.backward, *arguments)
            grad_weight = grad_out.T @ grads[3].to(weight.dtype)
            return grads[0], *grads[2], grad_weight, *add_layer_norm.of_x(grads, x)

        def formula(
            total: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, *x: Tensor
        ) -> tuple[Tensor, ...]:
            total = sum(x, total)
            return F.linear(layer_norm(total, norm_weight, norm_bias, eps).to(weight.dtype), weight), total

        total, *weights = ctx.saved_tensors
        narrow = add_layer_norm.in_sum(total, ctx.x_dtype)
        grads = gradient(kernel, formula, grad_outputs, (total, *weights, *narrow))
        grad_bias = grad_outputs[0].sum(0) if ctx.has_bias else None
        return grads[0], grads[4 if narrow else 0], *grads[1:4], grad_bias, None, None


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

        def rows(x: Tensor) -> Tensor:
            return F.linear(call(bias_gelu.forward, x, bias_before, dropout_rate, seed, backend), weight, bias)

        return rows(x) if seed is not None else in_pieces(rows, x, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, seed = ctx.saved_tensors
        dropout_rate, backend = ctx.arguments

        def kernel(grad_out: Tensor, x: Tensor, bias_before: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            if seed is None and len(parts := pieces(x, x.shape[1])) > 1:
                return _in_pieces_backward(grad_out, x, bias_before, weight, backend, parts)
            hidden = call(bias_gelu.forward, x, bias_before, dropout_rate, seed, backend)
            grad_hidden, grad_weight = grad_out @ weight, grad_out.T @ hidden
            del hidden  # before there is another one of its size
            return *call(bias_gelu.backward, grad_hidden, x, bias_before, dropout_rate, seed, backend), grad_weight

        def formula(x: Tensor, bias_before: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            hidden = plain_bias_gelu(x.float(), bias_before, dropout_rate, seed).to(x.dtype)
            return (F.linear(hidden, weight),)

        grads = gradient(kernel, formula, grad_outputs, tuple(inputs))
        return *grads, grad_outputs[0].sum(0), None, None, None


def _in_pieces_backward(
    grad_out: Tensor, x: Tensor, bias: Tensor, weight: Tensor, backend: str, parts: list[slice]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, the bias before and the weight; that of GELU's result is where that of x will be."""
    grad_x, grad_bias = x.new_empty(x.shape), torch.zeros_like(bias)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)  # in which pieces of a half type are added up
    for rows in parts:
        hidden = call(bias_gelu.forward, x[rows], bias, 0.0, None, backend)
        if weight.dtype == torch.float32:
            grad_weight.addmm_(grad_out[rows].T, hidden)
        else:
            grad_weight += grad_out[rows].T @ hidden
        torch.mm(grad_out[rows], weight, out=grad_x[rows])
        grad_bias += call(bias_gelu.backward_, grad_x[rows], x[rows], bias)
    return grad_x, grad_bias, grad_weight.to(weight.dtype)
