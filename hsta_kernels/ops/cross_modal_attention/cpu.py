"""Calls into csrc/cpu/absorbed_attention.cpp and cross_modal_projections.cpp; of the first also with another `run`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hsta_kernels.ops.cross_modal_attention.projections_backward import query_backward, values_backward
from hsta_kernels.ops.launch import contiguous_like
from hsta_kernels.ops.launch import cpu as launch
from hsta_kernels.ops.philox import kernel_arguments


def refuse(tokens: torch.Tensor, *heads_and_dropout: Any) -> str | None:
    return launch.refuse("tokens", tokens)


def forward(
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    eps: float,
    dropout_rate: float = 0.0,
    seed: torch.Tensor | None = None,
    run: Callable[..., None] = launch.run,
) -> tuple[torch.Tensor, torch.Tensor]:
    z, stats = contiguous_like(u), u.new_empty((*u.shape[:2], 2 if seed is None else 3))
    if z.numel():
        dropout = kernel_arguments(dropout_rate, seed)
        run("absorbed_attention_forward", u, query_token, tokens, eps, *dropout, z, stats)
    return z, stats


def backward(
    grad_z: torch.Tensor,
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
    dropout_rate: float = 0.0,
    seed: torch.Tensor | None = None,
    grad_s: torch.Tensor | None = None,
    run: Callable[..., None] = launch.run,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grads = contiguous_like(u), contiguous_like(query_token), contiguous_like(tokens)
    if z.numel():
        dropout = kernel_arguments(dropout_rate, seed)
        grad_s = u.new_empty((u.shape[0], 0)) if grad_s is None else grad_s
        run("absorbed_attention_backward", u, query_token, tokens, eps, *dropout, z, stats, grad_z, grad_s, *grads)
    return grads


def cross_modal_attention(
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    q_weight: torch.Tensor,
    q_bias: torch.Tensor,
    k_weight: torch.Tensor,
    v_weight: torch.Tensor,
    v_bias: torch.Tensor,
    num_heads: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The whole operator: its projections are kernels too (csrc/cpu/cross_modal_projections.cpp)."""
    out = contiguous_like(query_token)
    u = query_token.new_empty((query_token.shape[0], num_heads, query_token.shape[1]), dtype=torch.float32)
    norm = norm_weight.float(), norm_bias.float()
    if out.numel():
        launch.run("cross_modal_absorb_query", query_token, *norm, eps, q_weight, q_bias, k_weight, u)
    z, stats = forward(u, query_token, tokens, eps)
    if out.numel():
        launch.run("cross_modal_project_values", z, *norm, v_weight, v_bias, out)
    return out, u, z, stats


def cross_modal_attention_backward(
    grad_out: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    q_weight: torch.Tensor,
    q_bias: torch.Tensor,
    k_weight: torch.Tensor,
    v_weight: torch.Tensor,
    u: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """The gradients of k_bias, of `query_token` and of all that follows it, with v_bias after v_weight."""
    norm = norm_weight.float(), norm_bias.float()
    grad_z, *of_values = values_backward(grad_out, z, *norm, v_weight)
    grad_u, grad_query, grad_tokens = backward(grad_z.contiguous(), u, query_token, tokens, z, stats, eps)
    grad_absorbed, *of_query = query_backward(grad_u, query_token, *norm, q_weight, q_bias, k_weight, eps)
    grad_norm = ((a + b).to(norm_weight.dtype) for a, b in zip(of_values[:2], of_query[:2], strict=True))
    return torch.zeros_like(q_bias), grad_query + grad_absorbed, grad_tokens, *grad_norm, *of_query[2:], *of_values[2:]
