"""Calls into csrc/cpu/absorbed_attention.cpp and cross_modal_projections.cpp."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels.ops.launch import cpu as launch


def refuse(tokens: torch.Tensor, *heads: Any) -> str | None:
    return launch.refuse("tokens", tokens)


def forward(
    u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads = u.shape[:2]
    z, stats = u.new_empty(u.shape), u.new_empty((batch, heads, 2))
    if z.numel():
        launch.module().absorbed_attention_forward(*_arguments(u, query_token, tokens, eps, z, stats))
    return z, stats


def backward(
    grad_z: torch.Tensor,
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grads = u.new_empty(u.shape), query_token.new_empty(query_token.shape), tokens.new_empty(tokens.shape)
    if z.numel():
        launch.module().absorbed_attention_backward(
            *_arguments(u, query_token, tokens, eps, z, stats), grad_z.data_ptr(), *(grad.data_ptr() for grad in grads)
        )
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
    batch, width = query_token.shape
    out = query_token.new_empty((batch, width))
    u = query_token.new_empty((batch, num_heads, width), dtype=torch.float32)
    sizes = launch.DTYPES[tokens.dtype], (batch, num_heads, width)
    norm = norm_weight.data_ptr(), norm_bias.data_ptr()
    if out.numel():
        launch.module().cross_modal_absorb_query(
            *sizes,
            eps,
            *norm,
            query_token.data_ptr(),
            query_token.stride(0),
            *(tensor.data_ptr() for tensor in (q_weight, q_bias, k_weight, u)),
        )
    z, stats = forward(u, query_token, tokens, eps)
    if out.numel():
        launch.module().cross_modal_project_values(
            *sizes, *norm, *(tensor.data_ptr() for tensor in (z, v_weight, v_bias, out))
        )
    return out, u, z, stats


def _arguments(
    u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor, eps: float, z: torch.Tensor, stats: torch.Tensor
) -> tuple:
    batch, heads, width = u.shape
    return (
        launch.DTYPES[tokens.dtype],
        (batch, tokens.shape[1], heads, width),
        eps,
        u.data_ptr(),
        query_token.data_ptr(),
        query_token.stride(0),
        tokens.data_ptr(),
        tokens.stride()[:2],
        z.data_ptr(),
        stats.data_ptr(),
    )
