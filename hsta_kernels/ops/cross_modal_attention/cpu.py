"""Calls into csrc/cpu/absorbed_attention.cpp and cross_modal_projections.cpp; of the first also with another `run`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
