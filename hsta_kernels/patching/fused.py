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
from hsta_kernels.ops.fused_linear import add_layer_norm_linear, bias_gelu_linear


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
    if gelu_of(activation) == "tanh":  # PyTorch's is one pass, transformers' are eight, each with a tensor to save
        hidden, residual = norm_linear(norm, before, update, residual, bias=before.bias)
        return residual + F.linear(F.gelu(hidden, approximate="tanh"), after.weight, after.bias)
    hidden, residual = norm_linear(norm, before, update, residual)
    if torch.is_grad_enabled():
        return residual + bias_gelu_linear(hidden, before.bias, after.weight, after.bias)
    return residual + F.linear(ops.bias_gelu(hidden, before.bias), after.weight, after.bias)


def norm_linear(
    norm: nn.LayerNorm, linear: nn.Linear, update: Tensor | None, residual: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """linear(norm(residual + update)) with `bias` for the layer's own, and the sum."""
    if update is None:
        return F.linear(norm(residual), linear.weight, bias), residual
    if torch.is_grad_enabled():
        return add_layer_norm_linear(update, residual, norm.weight, norm.bias, linear.weight, bias, norm.eps)
    y, residual = ops.add_layer_norm(update, residual, norm.weight, norm.bias, norm.eps)
    return F.linear(y, linear.weight, bias), residual
