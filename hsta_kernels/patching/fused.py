"""The pieces of a pre-norm transformer layer that are one call here: a residual sum with its norm and the linear layer
that follows, and GELU with the bias before it and the linear layer that follows.

In training neither the normalized rows nor GELU's results are saved: both are computed once more in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import FastGELUActivation, GELUActivation, GELUTanh, NewGELUActivation

from hsta_kernels import ops
from hsta_kernels.models.plain import is_plain, is_plain_linear, is_plain_norm
from hsta_kernels.ops.checks import autocast_enabled
from hsta_kernels.ops.fused_linear import add_layer_norm_linear, as_autocast, bias_gelu_linear, in_pieces


def gelu_of(activation: nn.Module) -> str | None:
    """Which GELU of PyTorch's an activation of transformers is: "none", by the error function, or "tanh"."""
    if is_plain(activation, nn.GELU):
        return str(activation.approximate)
    if is_plain(activation, GELUActivation):
        return "none"
    by_tanh = (FastGELUActivation, GELUTanh, NewGELUActivation)
    return "tanh" if any(is_plain(activation, kind) for kind in by_tanh) else None


def not_gelu(activation: nn.Module) -> str | None:
    """Why a layer with this activation is left as it is, if it is."""
    return None if gelu_of(activation) else f"hidden_act is {type(activation).__name__}, no GELU"


def can_fuse_mlp(norm: nn.Module, before: nn.Module, activation: nn.Module, after: nn.Module) -> bool:
    """Whether none of an MLP's modules has to be called."""
    linears = is_plain_linear(before, bias=True) and is_plain_linear(after, bias=True)
    return is_plain_norm(norm) and linears and gelu_of(activation) is not None


def mlp(
    norm: nn.LayerNorm, before: nn.Linear, activation: nn.Module, after: nn.Linear, update: Tensor, residual: Tensor
) -> Tensor:
    """after(activation(before(norm(x)))) + x with x = residual + update."""
    tanh = gelu_of(activation) == "tanh"  # PyTorch's is one pass, transformers' are eight, each with a tensor to save
    if torch.is_grad_enabled():
        hidden, residual = norm_linear(norm, before, update, residual, bias=before.bias if tanh else None)
        if tanh:
            return residual + F.linear(F.gelu(hidden, approximate="tanh"), after.weight, after.bias)
        return residual + bias_gelu_linear(hidden, before.bias, after.weight, after.bias)

    norm_dtype = update.dtype if _dtype_of_products(update) == update.dtype else None
    y, residual = ops.add_layer_norm(update, residual, norm.weight, norm.bias, norm.eps, norm_dtype=norm_dtype)
    weight, bias, after_weight, after_bias = as_autocast(y, before.weight, before.bias, after.weight, after.bias)

    def rows(y: Tensor) -> Tensor:
        if tanh:
            hidden = F.gelu(F.linear(y, weight, bias), approximate="tanh")
        else:
            hidden = ops.bias_gelu(F.linear(y, weight), before.bias)
        return F.linear(hidden, after_weight, after_bias)

    return residual + in_pieces(rows, y.flatten(0, -2), before.out_features).view(y.shape)


def norm_linear(
    norm: nn.LayerNorm, linear: nn.Linear, update: Tensor | None, residual: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """linear(norm(residual + update)) with `bias` for the layer's own, and the sum."""
    if update is None:
        return F.linear(norm(residual), linear.weight, bias), residual
    return add_layer_norm_linear(update, residual, norm.weight, norm.bias, linear.weight, bias, norm.eps)


def normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x), in inference in the dtype of the products that follow: each of them would make a copy of its own."""
    y: Tensor = norm(x)
    return y if torch.is_grad_enabled() else y.to(_dtype_of_products(y))


def _dtype_of_products(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if autocast_enabled(x) else x.dtype
