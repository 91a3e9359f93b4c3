"""Calls into csrc/cuda/absorbed_attention_{forward,backward}.cu."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels.ops.cross_modal_attention import cpu
from hsta_kernels.ops.launch import cuda as launch

_MAX_HEADS = 32


def refuse(tokens: torch.Tensor, num_heads: int = 1, dropout_rate: float = 0.0) -> str | None:
    if dropout_rate:
        return f"dropout_rate is {dropout_rate}; the kernels drop nothing"
    if tokens.shape[-1] % 8:
        return f"tokens has rows of {tokens.shape[-1]}; the kernels take multiples of 8"
    if num_heads > _MAX_HEADS:
        return f"there are {num_heads} heads; the kernels take up to {_MAX_HEADS}"
    return launch.refuse("tokens", tokens)


def forward(
    u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor, eps: float, *no_dropout: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    u, query_token, tokens = map(launch.aligned, (u, query_token, tokens))
    return cpu.forward(u, query_token, tokens, eps, run=launch.run)


def backward(
    grad_z: torch.Tensor,
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
    *no_dropout: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_z, u, query_token, tokens = map(launch.aligned, (grad_z, u, query_token, tokens))
    return cpu.backward(grad_z, u, query_token, tokens, z, stats, eps, run=launch.run)
